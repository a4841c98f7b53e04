"""The exchange server's history: every trade it has played, sent or not, by id over REST."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from typing import Any

from aiohttp import web

from k2.exchange.capture import Frame
from k2.exchange.tally import TRADE, id_of, kind_of

#: Trades kept per stream.
_KEPT = 100_000
_PAGE = 1_000


class Past:
    """Trades by stream and id, as they were played: faults change what is sent, not this."""

    def __init__(self) -> None:
        self._streams: dict[str, dict[int, Frame]] = {}

    def add(self, frames: Iterable[Frame]) -> None:
        for frame in frames:
            if kind_of(frame.stream) != TRADE:
                continue
            ident = id_of(TRADE, frame.data)
            if ident is None:
                continue
            held = self._streams.setdefault(frame.stream, {})
            held[ident] = frame
            if len(held) > _KEPT:
                del held[next(iter(held))]

    def between(self, stream: str, first: int, last: int, limit: int) -> list[dict[str, Any]]:
        """Contents of up to `limit` trades by rising id."""
        held = self._streams.get(stream, {})
        idents = (ident for ident in sorted(held) if first <= ident <= last)
        return [json.loads(held[ident].data) for ident in islice(idents, limit)]


def history_routes(past: Past) -> list[web.RouteDef]:
    """`/api/v3/historicalTrades` as Binance, `/products/{id}/trades` as Coinbase answers it."""

    async def binance(request: web.Request) -> web.Response:
        symbol, first = request.query.get("symbol", ""), _integer(request, "fromId", 0)
        found = past.between(f"{symbol.lower()}@trade", first, 2**63, _limit(request))
        return web.json_response([_binance(frame["data"]) for frame in found])

    async def coinbase(request: web.Request) -> web.Response:
        before, limit = _integer(request, "after", 2**63), _limit(request)
        stream = f"matches:{request.match_info['product']}"
        found = past.between(stream, before - limit, before - 1, limit)
        return web.json_response([_coinbase(frame) for frame in reversed(found)])

    return [
        web.get("/api/v3/historicalTrades", binance),
        web.get("/products/{product}/trades", coinbase),
    ]


def _integer(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, "")
    return int(text) if text.isdigit() else default


def _limit(request: web.Request) -> int:
    return min(_PAGE, max(1, _integer(request, "limit", 500)))


def _binance(trade: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": trade["t"],
        "price": trade["p"],
        "qty": trade["q"],
        "time": trade["T"],
        "isBuyerMaker": trade["m"],
        "isBestMatch": trade.get("M", True),
    }


def _coinbase(match: dict[str, Any]) -> dict[str, Any]:
    return {name: match[name] for name in ("time", "trade_id", "price", "size", "side")}
