"""Trades an exchange sent while nobody listened, from its REST history, as the frames they were.

Turning an answer back into frames lets the exchange's own mapper read it, so that a trade fetched
afterwards has the fields it would have had.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlencode

from k2.errors import SourceError

#: Most trades of one answer, with all exchanges here.
PAGE: Final = 1_000


class HistoryFrame(NamedTuple):
    """A trade's id, and the frame it came in."""

    ident: int
    frame: bytes


class History(Protocol):
    """One exchange's history of trades by id."""

    live: str

    def url(self, symbol: str, first: int, last: int) -> str:
        """Path and query for up to `PAGE` trades, `first` (and if need be `last`) among them.

        `symbol` is the exchange's own name for it.
        """

    def frames(self, symbol: str, content: Any) -> list[HistoryFrame]:
        """The answer's trades, oldest first. Raises `SourceError` when it is none."""


class BinanceHistory:
    """`GET /api/v3/historicalTrades`: from an id on."""

    live = "https://api.binance.com"

    def url(self, symbol: str, first: int, last: int) -> str:
        limit = min(PAGE, last - first + 1)
        query = urlencode({"symbol": symbol, "fromId": first, "limit": limit})
        return f"/api/v3/historicalTrades?{query}"

    def frames(self, symbol: str, content: Any) -> list[HistoryFrame]:
        return [
            HistoryFrame(
                int(trade["id"]),
                _encode(
                    {
                        "stream": f"{symbol.lower()}@trade",
                        "data": {
                            "e": "trade",
                            "E": trade["time"],
                            "s": symbol,
                            "t": trade["id"],
                            "p": trade["price"],
                            "q": trade["qty"],
                            "T": trade["time"],
                            "m": trade["isBuyerMaker"],
                            "M": trade.get("isBestMatch"),
                        },
                    }
                ),
            )
            for trade in _listed(content, ("id", "price", "qty", "time", "isBuyerMaker"))
        ]


class CoinbaseHistory:
    """`GET /products/{id}/trades?after=`: trades before an id, newest first; no sequence."""

    live = "https://api.exchange.coinbase.com"

    def url(self, symbol: str, first: int, last: int) -> str:
        end = min(last, first + PAGE - 1)
        query = urlencode({"after": end + 1, "limit": end - first + 1})
        return f"/products/{symbol}/trades?{query}"

    def frames(self, symbol: str, content: Any) -> list[HistoryFrame]:
        rows = _listed(content, ("trade_id", "price", "size", "time", "side"))
        return [
            HistoryFrame(
                int(trade["trade_id"]),
                _encode(
                    {
                        "type": "match",
                        "trade_id": trade["trade_id"],
                        "side": trade["side"],
                        "size": trade["size"],
                        "price": trade["price"],
                        "product_id": symbol,
                        "sequence": None,
                        "time": trade["time"],
                    }
                ),
            )
            for trade in reversed(rows)
        ]


HISTORIES: Final[dict[str, History]] = {
    "binance": BinanceHistory(),
    "coinbase": CoinbaseHistory(),
}


def rest_base(configured: str, url: str, live: str) -> str:
    """Where the history is: as configured, else beside a local exchange, else the live one."""
    if configured:
        return configured.rstrip("/")
    if url.startswith("ws://"):
        return "http://" + url.removeprefix("ws://").partition("/")[0]
    return live


def _listed(content: Any, fields: Sequence[str]) -> list[dict[str, Any]]:
    if not isinstance(content, list):
        raise SourceError(f"the history is no list of trades: {str(content)[:200]}")
    for trade in content:
        if not isinstance(trade, dict) or not all(field in trade for field in fields):
            raise SourceError(f"the history holds what is no trade: {str(trade)[:200]}")
    return content


def _encode(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()
