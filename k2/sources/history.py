"""Trades an exchange sent while nobody listened, from its REST history, as the frames they were.

Turning an answer back into frames lets the exchange's own mapper read it, so that a trade fetched
afterwards has the fields it would have had.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, Protocol
from urllib.parse import urlencode

from k2.errors import SourceError
from k2.setting_feeds import Feed
from k2.sources.kraken_history import KrakenHistory
from k2.sources.page import PAGE, HistoryFrame, Wanted


class History(Protocol):
    """An exchange's history of one data type. `by_time`: asked from a time on, not from an id."""

    live: str
    by_time: bool

    def serves(self, settings: Feed) -> bool:
        """False when the feed as configured does not ask for these records, or not with ids."""

    def url(self, wanted: Wanted) -> str:
        """Path and query for up to `PAGE` trades, the first of `wanted` among them."""

    def frames(self, symbol: str, content: bytes) -> list[HistoryFrame]:
        """The answer's trades, oldest first. Raises `SourceError` when it is none."""


def _from_id(wanted: Wanted) -> str:
    limit = min(PAGE, wanted.last - wanted.first + 1)
    return urlencode({"symbol": wanted.symbol, "fromId": wanted.first, "limit": limit})


class BinanceHistory:
    """`GET /api/v3/historicalTrades`: from an id on."""

    live = "https://api.binance.com"
    by_time = False

    def serves(self, settings: Feed) -> bool:
        return "trade" in settings.streams

    def url(self, wanted: Wanted) -> str:
        return f"/api/v3/historicalTrades?{_from_id(wanted)}"

    def frames(self, symbol: str, content: bytes) -> list[HistoryFrame]:
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


class BinanceAggregates:
    """`GET …/aggTrades`: aggregated trades from an id on; it needs no key."""

    by_time = False

    def __init__(self, live: str, path: str) -> None:
        self.live = live
        self._path = path

    def serves(self, settings: Feed) -> bool:
        return "aggTrade" in settings.streams

    def url(self, wanted: Wanted) -> str:
        return f"{self._path}?{_from_id(wanted)}"

    def frames(self, symbol: str, content: bytes) -> list[HistoryFrame]:
        fields = ("a", "p", "q", "f", "l", "T", "m")
        return [
            HistoryFrame(
                int(trade["a"]),
                _encode(
                    {
                        "stream": f"{symbol.lower()}@aggTrade",
                        "data": {
                            "e": "aggTrade",
                            "E": trade["T"],
                            "s": symbol,
                            **{name: trade[name] for name in fields},
                            **({"M": trade["M"]} if "M" in trade else {}),
                        },
                    }
                ),
            )
            for trade in _listed(content, fields)
        ]


class CoinbaseHistory:
    """`GET /products/{id}/trades?after=`: trades before an id, newest first; no sequence."""

    live = "https://api.exchange.coinbase.com"
    by_time = False

    def serves(self, settings: Feed) -> bool:
        return "matches" in settings.streams

    def url(self, wanted: Wanted) -> str:
        end = min(wanted.last, wanted.first + PAGE - 1)
        query = urlencode({"after": end + 1, "limit": end - wanted.first + 1})
        return f"/products/{wanted.symbol}/trades?{query}"

    def frames(self, symbol: str, content: bytes) -> list[HistoryFrame]:
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


#: By exchange and data type. Trades of USD-M futures leave ids out by themselves, so nothing tells
#: which to ask for; nor does anything of book tickers.
HISTORIES: Final[dict[tuple[str, str], History]] = {
    ("binance", "trades"): BinanceHistory(),
    ("binance", "agg_trades"): BinanceAggregates("https://api.binance.com", "/api/v3/aggTrades"),
    ("binance_futures", "agg_trades"): BinanceAggregates(
        "https://fapi.binance.com", "/fapi/v1/aggTrades"
    ),
    ("coinbase", "trades"): CoinbaseHistory(),
    ("kraken", "trades"): KrakenHistory(),
}


def rest_base(configured: str, url: str, live: str) -> str:
    """Where the history is: as configured, else beside a local exchange, else the live one."""
    if configured:
        return configured.rstrip("/")
    if url.startswith("ws://"):
        return "http://" + url.removeprefix("ws://").partition("/")[0]
    return live


def _listed(raw: bytes, fields: Sequence[str]) -> list[dict[str, Any]]:
    try:
        content = json.loads(raw)
    except ValueError as exc:
        raise SourceError(f"the history is no JSON: {raw[:200]!r}") from exc
    if not isinstance(content, list):
        raise SourceError(f"the history is no list of trades: {str(content)[:200]}")
    for trade in content:
        if not isinstance(trade, dict) or not all(field in trade for field in fields):
            raise SourceError(f"the history holds what is no trade: {str(trade)[:200]}")
    return content


def _encode(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()
