"""Kraken v2 frames to columns: `trade` and `ticker`.

Prices and quantities are JSON numbers: their digits are taken as they stand in the frame, never
through a float. A snapshot of trades repeats the newest ones; their ids tell. Tickers have no id,
and before 2025 no time: their id is a hash of what they say, and they are not deduplicated.
"""

from __future__ import annotations

import datetime as dt
import zlib
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Annotated, Final, Literal

import msgspec

from k2.sources.rows import Pair, QuoteRow, RowMapper, Rows, TradeRow
from k2.times import micros

_QUIET: Final = frozenset({"status", "heartbeat"})
_Id = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Time = Annotated[dt.datetime, msgspec.Meta(tz=True)]


class _Kind(msgspec.Struct, gc=False):
    channel: str = ""
    method: str = ""
    success: bool | None = None
    error: str = ""


class _Trade(msgspec.Struct, gc=False):
    symbol: str
    side: Literal["buy", "sell"]
    price: msgspec.Raw
    qty: msgspec.Raw
    trade_id: _Id
    timestamp: _Time
    ord_type: str = ""


class _Ticker(msgspec.Struct, gc=False):
    symbol: str
    bid: msgspec.Raw
    bid_qty: msgspec.Raw
    ask: msgspec.Raw
    ask_qty: msgspec.Raw
    timestamp: _Time | None = None


class _TradeFrame(msgspec.Struct, gc=False):
    type: Literal["snapshot", "update"]
    data: list[_Trade]


class _TickerFrame(msgspec.Struct, gc=False):
    type: Literal["snapshot", "update"]
    data: list[_Ticker]


_KIND: Final = msgspec.json.Decoder(_Kind)
_TRADES: Final = msgspec.json.Decoder(_TradeFrame)
_TICKERS: Final = msgspec.json.Decoder(_TickerFrame)


def digits(raw: msgspec.Raw) -> str:
    """A JSON number as plain decimal text, every digit kept.

    Raises `msgspec.ValidationError` when it is no number.
    """
    text = bytes(raw).decode("ascii", "replace")
    if text[:1] not in "-0123456789" or not text:
        raise msgspec.ValidationError(f"Expected a number, got {text[:40]}")
    if text.isdigit() or "e" not in text.lower():
        return text
    try:
        return format(Decimal(text), "f") if len(text) < 40 else text
    except InvalidOperation as exc:
        raise msgspec.ValidationError(f"Expected a number, got {text[:40]}") from exc


class KrakenV2Mapper(RowMapper):
    """Maps frames of the given pairs (by Kraken's names) and channels."""

    exchange = "KRAKEN"

    def __init__(self, pairs: Mapping[str, Pair], channels: Sequence[str]) -> None:
        super().__init__(pairs)
        self._channels = frozenset(channels)

    def _sort(self, data: bytes, recv_us: int, rows: Rows) -> None:
        kind = _KIND.decode(data)
        if kind.channel == "trade" and "trade" in self._channels:
            frame = _TRADES.decode(data)
            for trade in frame.data:
                if pair := self._pair_of(trade.symbol, data, recv_us, rows):
                    rows.trades.append(_trade_row(trade, pair, frame.type, recv_us))
        elif kind.channel == "ticker" and "ticker" in self._channels:
            for ticker in _TICKERS.decode(data).data:
                if pair := self._pair_of(ticker.symbol, data, recv_us, rows):
                    rows.quotes.append(_quote_row(ticker, pair, recv_us))
        elif kind.channel in _QUIET or (kind.method and kind.success is not False):
            rows.mapped.control += 1
        elif kind.error or kind.success is False:
            rows.refuse("exchange_error", data, kind.error, recv_us)
        elif kind.channel:
            rows.mapped.ignored[kind.channel] += 1
        else:
            rows.refuse("unknown_frame", data, "neither a channel nor an answer", recv_us)


def _trade_row(trade: _Trade, pair: Pair, frame_type: str, recv_us: int) -> TradeRow:
    vendor = {"frame_type": frame_type}
    if trade.ord_type:
        vendor["order_type"] = trade.ord_type
    return TradeRow(
        pair,
        str(trade.trade_id),
        micros(trade.timestamp),
        recv_us,
        digits(trade.price),
        digits(trade.qty),
        trade.side.upper(),
        trade.trade_id,
        vendor,
    )


def _quote_row(ticker: _Ticker, pair: Pair, recv_us: int) -> QuoteRow:
    sides = (ticker.bid, ticker.bid_qty, ticker.ask, ticker.ask_qty)
    bid, bid_quantity, ask, ask_quantity = map(digits, sides)
    time_us = recv_us if ticker.timestamp is None else micros(ticker.timestamp)
    said = zlib.crc32(f"{bid}/{bid_quantity}/{ask}/{ask_quantity}".encode())
    return QuoteRow(
        pair,
        f"{time_us}-{said:08x}",
        time_us,
        recv_us,
        bid,
        bid_quantity,
        ask,
        ask_quantity,
        None,
        {"timestamp_source": "receive"} if ticker.timestamp is None else {},
    )
