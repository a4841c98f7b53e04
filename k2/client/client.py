"""`K2Client`: every read of the HTTP interface as a method.

    async with K2Client("http://127.0.0.1:8000", key="…") as k2:
        trades = await k2.trades("BTCUSDT", limit=100)
        print(trades.table)

Answers are `Rows`: an Arrow table, and what it was read at. Symbols are one name or several; times
are ISO 8601, microseconds since 1970 or aware datetimes, `start` inclusive and `end` exclusive.
`as_of` (a time) or `snapshot_id` read an older state of the lake. Whatever goes wrong is an
`ApiError`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

import aiohttp
import orjson

from k2.client.figures import Figures
from k2.client.http import Time
from k2.client.operations import Operations
from k2.client.parameters import Symbols, Table, id_text, listed, names
from k2.client.records import Records
from k2.client.rows import Rows
from k2.errors import ApiBusyError, ApiError

__all__ = ["K2Client", "Table"]


class K2Client(Records, Figures, Operations):
    """A client of one server. `key`: its X-API-Key. `timeout_s`: without a byte from the server."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str = "",
        timeout_s: float = 60.0,
        connector: aiohttp.BaseConnector | None = None,
    ) -> None:
        super().__init__(url, key, timeout_s, connector)

    async def symbols(
        self,
        *,
        exchange: str | None = None,
        fields: Iterable[str] | None = None,
        as_of: Time | None = None,
        snapshot_id: int | str | None = None,
    ) -> Rows:
        """Symbols with trades, and their exchanges; with `fields` also what each is."""
        given = {
            "exchange": exchange,
            "fields": listed(fields),
            "as_of": as_of,
            "snapshot_id": id_text(snapshot_id),
        }
        return await self.rows("GET", "/v1/symbols", given)

    async def sql(self, text: str, *, limit: int | None = None, as_of: Time | None = None) -> Rows:
        """One SELECT over the views; 1,000 rows unless `limit` says else."""
        given = {"sql": text, "limit": limit, "as_of": as_of}
        return await self.rows("POST", "/v1/sql", given)

    async def stream(
        self, data_type: str = "trades", symbols: Symbols = None, **options: Any
    ) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
        """What comes from now on: (`snapshot` or `rows`, the rows as JSON has them).

        (`skipped`, [{"count": n}]): n rows are missing here, for they were taken too slowly.
        Raises `ApiError` when the server cannot go on.
        """
        given = {"data_type": data_type, "symbols": names(symbols), **options}
        async for event, data in self.events("/v1/stream", given):
            body = orjson.loads(data)
            if event in ("snapshot", "rows"):
                yield event, body["data"]
            elif event == "skipped":
                yield event, [body]
            elif event == "error":
                raise _ended(body)


def _ended(body: dict[str, Any]) -> ApiError:
    kind = ApiBusyError if "retry_after_s" in body else ApiError
    return kind(body.pop("message"), **body)
