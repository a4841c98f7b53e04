"""The stored trade next to a gap: when a history that goes by time has to be asked from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from k2.query.bounds import Bounds
from k2.query.engine import QueryEngine

_BELOW: Final = (
    "select coalesce(max(epoch_ns(timestamp)), 0) as since_ns from trades "
    "where exchange = ? and symbol = ? and try_cast(trade_id as bigint) < ?"
)


def time_below(engine: QueryEngine) -> Callable[[str, str, int], Awaitable[int]]:
    """(exchange, symbol, id) -> exchange time, nanoseconds UTC, of the newest trade below the id.

    0 when there is none. Raises `K2Error` when the lake does not answer.
    """

    async def find(exchange: str, symbol: str, ident: int) -> int:
        bounds = Bounds(frozenset((symbol,)), None, None)
        values = [exchange.upper(), symbol, ident]
        found = await engine.fixed("backfill", _BELOW, values, {"trades": bounds}, limit=1)
        return int(found.rows.column("since_ns")[0].as_py())

    return find
