"""The exchange server's history: all trades and aggregates it has played, sent or not, by id."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from itertools import islice
from typing import Any

from aiohttp import web

from k2.exchange.capture import Frame
from k2.exchange.tally import AGGREGATE, TRADE, ids_of, kind_of
from k2.sources.kraken_history import nanoseconds, rest_pair

#: Trades kept of all streams together, about 450 bytes each, and of one at least.
_KEPT = 200_000
_LEAST = 1_000
_PAGE = 1_000
_KINDS = (TRADE, AGGREGATE)


class Past:
    """Trades by stream and id, as they were played: faults change what is sent, not this."""

    def __init__(self) -> None:
        self._streams: dict[str, dict[int, Frame]] = {}

    def add(self, frames: Sequence[Frame], idents: Sequence[int | None] | None = None) -> None:
        """Keep trades and aggregates; `idents` are `ids_of` the frames."""
        for frame, ident in zip(frames, ids_of(frames) if idents is None else idents, strict=True):
            if ident is None or kind_of(frame.stream) not in _KINDS:
                continue
            held = self._streams.setdefault(frame.stream, {})
            held[ident] = frame
            limit = max(_LEAST, _KEPT // len(self._streams))
            while len(held) > limit:
                del held[next(iter(held))]

    def kraken(self, pair: str) -> list[list[Any]]:
        """Trades of a pair (as the REST interface names it), by rising id."""
        streams = [s for s in self._streams if rest_pair(s.removeprefix("trade:")) == pair]
        frames = (held for stream in streams for held in self._streams[stream].values())
        # Numbers as text: the digits are the exchange's.
        found = (json.loads(f.data, parse_float=str, parse_int=str) for f in frames)
        rows = [_kraken(trade) for frame in found for trade in frame["data"]]
        return sorted(([*row[:6], int(row[6])] for row in rows), key=lambda row: row[6])

    def between(self, stream: str, first: int, last: int, limit: int) -> list[dict[str, Any]]:
        """Contents of up to `limit` trades by rising id."""
        held = self._streams.get(stream, {})
        idents = (ident for ident in sorted(held) if first <= ident <= last)
        return [json.loads(held[ident].data) for ident in islice(idents, limit)]


def _kraken(trade: dict[str, Any]) -> list[Any]:
    """A trade of a v2 frame as a row of the REST answer."""
    at = dt.datetime.fromisoformat(trade["timestamp"])
    seconds = f"{int(at.timestamp())}.{at.microsecond:06d}"
    kind = {"limit": "l", "market": "m"}.get(trade.get("ord_type", ""), "")
    side = trade["side"][:1]
    return [trade["price"], trade["qty"], seconds, side, kind, "", trade["trade_id"]]


def history_routes(past: Past) -> list[web.RouteDef]:
    """`historicalTrades` and `aggTrades` as Binance, `/products/{id}/trades` as Coinbase and
    `/0/public/Trades` as Kraken answers it."""

    async def binance(request: web.Request) -> web.Response:
        symbol, first = request.query.get("symbol", ""), _integer(request, "fromId", 0)
        found = past.between(f"{symbol.lower()}@trade", first, 2**63, _limit(request))
        return web.json_response([_binance(frame["data"]) for frame in found])

    async def aggregates(request: web.Request) -> web.Response:
        symbol, first = request.query.get("symbol", ""), _integer(request, "fromId", 0)
        found = past.between(f"{symbol.lower()}@aggTrade", first, 2**63, _limit(request))
        return web.json_response([_aggregate(frame["data"]) for frame in found])

    async def coinbase(request: web.Request) -> web.Response:
        before, limit = _integer(request, "after", 2**63), _limit(request)
        stream = f"matches:{request.match_info['product']}"
        found = past.between(stream, before - limit, before - 1, limit)
        return web.json_response([_coinbase(frame) for frame in reversed(found)])

    async def kraken(request: web.Request) -> web.Response:
        pair, since_ns = request.query.get("pair", ""), _integer(request, "since", 0)
        found = [row for row in past.kraken(pair) if nanoseconds(row[2]) > since_ns]
        rows = found[: _limit(request)]
        last = str(nanoseconds(rows[-1][2])) if rows else str(since_ns)
        return web.json_response({"error": [], "result": {pair: rows, "last": last}})

    return [
        web.get("/0/public/Trades", kraken),
        web.get("/api/v3/historicalTrades", binance),
        web.get("/api/v3/aggTrades", aggregates),
        web.get("/fapi/v1/aggTrades", aggregates),
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


def _aggregate(trade: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in trade.items() if name not in ("e", "E", "s")}


def _coinbase(match: dict[str, Any]) -> dict[str, Any]:
    return {name: match[name] for name in ("time", "trade_id", "price", "size", "side")}
