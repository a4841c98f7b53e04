"""Coinbase Exchange: `matches` and `ticker` of products such as `BTC-USD`.

Source: "WebSocket Channels" of the Coinbase Exchange documentation, and a recorded session.

- A match's `side` is the maker's, so the aggressor's is the other one (the ticker of the same trade
  names the taker's, which is how the capture shows it).
- Trade ids rise by one per product. `last_match` repeats the last trade before each subscription:
  its id tells whether it is a repeat, or shows what was missed.
- A ticker's `sequence` is its product's, rising and skipping, and is the quote's id. Tickers before
  2022 carry no sizes: both quantities are then 0, and vendor_data says so.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

from k2.setting_feeds import Coinbase
from k2.sources.plan import SessionSpec, plan_coinbase
from k2.sources.rows import Pair, QuoteRow, RowMapper, Rows, TradeRow
from k2.times import micros

_AGGRESSOR: Final = {"buy": "SELL", "sell": "BUY"}
_CONTROL: Final = frozenset({"subscriptions", "heartbeat"})

_Id = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Kind(msgspec.Struct, gc=False):
    type: str


class _Match(msgspec.Struct, gc=False):
    type: Literal["match", "last_match"]
    trade_id: _Id
    side: Literal["buy", "sell"]
    size: str
    price: str
    product_id: str
    time: Annotated[dt.datetime, msgspec.Meta(tz=True)]
    #: The REST history has none.
    sequence: _Id | None = None
    maker_order_id: str = ""
    taker_order_id: str = ""


class _Ticker(msgspec.Struct, gc=False):
    type: Literal["ticker"]
    sequence: _Id
    product_id: str
    best_bid: str
    best_ask: str
    best_bid_size: str = ""
    best_ask_size: str = ""
    time: Annotated[dt.datetime, msgspec.Meta(tz=True)] | None = None


class _Error(msgspec.Struct, gc=False):
    message: str = ""
    reason: str = ""


_KIND: Final = msgspec.json.Decoder(_Kind)
_MATCH: Final = msgspec.json.Decoder(_Match)
_TICKER: Final = msgspec.json.Decoder(_Ticker)


@dataclass(frozen=True, slots=True)
class CoinbaseProtocol:
    """One subscription for all products; Coinbase closes who has not subscribed within 5 s."""

    products: tuple[str, ...]
    channels: tuple[str, ...]

    def url(self, base: str) -> str:
        return base.rstrip("/") + "/"

    def messages(self) -> list[str]:
        request = {
            "type": "subscribe",
            "product_ids": list(self.products),
            "channels": list(self.channels),
        }
        return [json.dumps(request)]

    def is_data(self, frame: bytes) -> bool:
        return b'"match"' in frame or b'"ticker"' in frame or b'"last_match"' in frame


class CoinbaseMapper(RowMapper):
    """Maps frames of the given products and channels."""

    exchange = "COINBASE"

    def __init__(self, products: Sequence[str], channels: Sequence[str]) -> None:
        super().__init__({product: _pair(product) for product in products})
        self._matches = "matches" in channels
        self._ticker = "ticker" in channels

    def _sort(self, data: bytes, recv_us: int, rows: Rows) -> None:
        kind = _KIND.decode(data).type
        if kind in {"match", "last_match"} and self._matches:
            self._add_match(_MATCH.decode(data), data, recv_us, rows)
        elif kind == "ticker" and self._ticker:
            self._add_ticker(_TICKER.decode(data), data, recv_us, rows)
        elif kind in _CONTROL:
            rows.mapped.control += 1
        elif kind == "error":
            error = msgspec.json.decode(data, type=_Error)
            rows.refuse("exchange_error", data, f"{error.message}: {error.reason}", recv_us)
        else:
            rows.mapped.ignored[kind] += 1

    def _add_match(self, match: _Match, data: bytes, recv_us: int, rows: Rows) -> None:
        pair = self._pair_of(match.product_id, data, recv_us, rows)
        if pair is None:
            return
        vendor = {
            "event_type": match.type,
            "maker_order_id": match.maker_order_id,
            "taker_order_id": match.taker_order_id,
        }
        rows.trades.append(
            TradeRow(
                pair,
                str(match.trade_id),
                micros(match.time),
                recv_us,
                match.price,
                match.size,
                _AGGRESSOR[match.side],
                match.sequence,
                {name: value for name, value in vendor.items() if value},
            )
        )

    def _add_ticker(self, ticker: _Ticker, data: bytes, recv_us: int, rows: Rows) -> None:
        pair = self._pair_of(ticker.product_id, data, recv_us, rows)
        if pair is None:
            return
        vendor = {} if ticker.best_bid_size else {"quantity_source": "absent"}
        if ticker.time is None:
            vendor["timestamp_source"] = "receive"
        rows.quotes.append(
            QuoteRow(
                pair,
                str(ticker.sequence),
                recv_us if ticker.time is None else micros(ticker.time),
                recv_us,
                ticker.best_bid,
                ticker.best_bid_size or "0",
                ticker.best_ask,
                ticker.best_ask_size or "0",
                ticker.sequence,
                vendor,
            )
        )


def _pair(product: str) -> Pair:
    base, _, quote = product.partition("-")
    return Pair(base + quote, base, quote)


class CoinbaseExchange:
    """Coinbase's entry in the catalogue of sources."""

    name = "coinbase"

    def sessions(self, settings: Coinbase) -> list[SessionSpec]:
        return plan_coinbase(
            settings.symbols, settings.streams, per_session=settings.symbols_per_session
        )

    def protocol(self, spec: SessionSpec, settings: Coinbase) -> CoinbaseProtocol:
        return CoinbaseProtocol(spec.symbols, spec.streams)

    def mapper(self, spec: SessionSpec, settings: Coinbase) -> CoinbaseMapper:
        return CoinbaseMapper(spec.symbols, settings.streams)
