"""Binance frames to columns: `trade`, `aggTrade`, `bookTicker` of combined or raw streams.

Mapping (spec ING-03, ING-04): a trade's timestamp is `T` (not `E`), its side is the aggressor's:
SELL when the buyer was the maker. Spot's `bookTicker` carries no time, so a quote's timestamp is
when we received it, and its vendor_data says so; that of USD-M futures has one (`T`). Prices and
quantities stay the exchange's text; whether they make sense is for the rules to judge. What cannot
be mapped is refused, never raised.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2.records import build, vendor_map
from k2.setting_feeds import Binance
from k2.sources.binance_frames import (
    AGG_FRAME,
    BOOK_FRAME,
    TRADE_FRAME,
    AggTrade,
    BookTicker,
    Trade,
)
from k2.sources.binance_protocol import BinanceProtocol
from k2.sources.contract import Mapped, Received
from k2.sources.plan import CHANNELS, SessionSpec, plan_sessions
from k2.sources.refused import DECODE_ERRORS, Refused, undecodable
from k2.sources.symbols import split_symbol

_PREFIX: Final = b'{"stream":"'
_PREFIX_LENGTH: Final = len(_PREFIX)
_TEXT: Final = pa.string()
#: Types of a fill that need no mention; the spot market names none.
_ORDINARY: Final = frozenset({"", "MARKET"})


class BinanceExchange:
    """Binance's entry in the catalogue of sources."""

    name = "binance"
    asset_class = "crypto"

    def sessions(self, settings: Binance) -> list[SessionSpec]:
        return plan_sessions(
            settings.symbols,
            settings.streams,
            per_session=settings.symbols_per_session,
            exchange=self.name.upper(),
        )

    def protocol(self, spec: SessionSpec, settings: Binance) -> BinanceProtocol:
        return BinanceProtocol(spec.streams)

    def mapper(self, spec: SessionSpec, settings: Binance) -> BinanceMapper:
        return BinanceMapper(
            spec.symbols,
            settings.streams,
            exchange=self.name.upper(),
            asset_class=self.asset_class,
        )


class BinanceFuturesExchange(BinanceExchange):
    """USD-M futures: another market under the same symbols, so another exchange to K2."""

    name = "binance_futures"
    asset_class = "futures"


class BinanceMapper:
    """Maps frames of the given symbols and channels."""

    def __init__(
        self,
        symbols: Iterable[str],
        channels: Sequence[str] = CHANNELS,
        *,
        exchange: str = "BINANCE",
        asset_class: str = "crypto",
    ) -> None:
        self._assets = {symbol.upper(): split_symbol(symbol.upper()) for symbol in symbols}
        self._routes = {
            f"{symbol.lower()}@{channel}".encode(): (channel, symbol)
            for symbol in self._assets
            for channel in channels
        }
        self._channels = frozenset(channels)
        self._exchange = exchange
        self._asset_class = asset_class

    def map(
        self, frames: Sequence[Received], *, ingestion_us: int, is_backfill: bool = False
    ) -> Mapped:
        """Columns of `frames`, (receive time in microseconds UTC, bytes) each; never raises.

        `ingestion_us`: when they are handed to the log.
        """
        rows = _Rows()
        for frame in frames:
            self._sort(frame, rows)
        mapped = rows.mapped
        if rows.trades:
            mapped.trades = self._trade_batch(rows, ingestion_us, is_backfill)
            mapped.delay_us = rows.trade_recv_us[-1] - rows.trades[-1].T * 1_000
        if rows.agg_trades:
            mapped.agg_trades = self._agg_batch(rows, ingestion_us, is_backfill)
        if rows.quotes:
            mapped.quotes = self._quote_batch(rows, ingestion_us, is_backfill)
        return mapped

    def _sort(self, frame: Received, rows: _Rows) -> None:
        recv_us, data = frame
        route = None
        if data.startswith(_PREFIX):
            route = self._routes.get(data[_PREFIX_LENGTH : data.find(b'"', _PREFIX_LENGTH)])
        try:
            if route is None:
                self._sort_unusual(recv_us, data, rows)
                return
            channel, symbol = route
            if channel == "trade":
                rows.add_trade(TRADE_FRAME.decode(data).data, symbol, recv_us, data)
            elif channel == "aggTrade":
                rows.add_agg_trade(AGG_FRAME.decode(data).data, symbol, recv_us, data)
            else:
                rows.add_quote(BOOK_FRAME.decode(data).data, symbol, recv_us, data)
        except DECODE_ERRORS as exc:
            rows.mapped.refused.append(undecodable(exc, data, recv_us))

    def _sort_unusual(self, recv_us: int, data: bytes, rows: _Rows) -> None:
        """Frames that do not begin with the name of one of our streams."""
        content = msgspec.json.decode(data)
        if not isinstance(content, dict):
            rows.refuse("unknown_frame", data, "not a JSON object", recv_us)
            return
        stream, inner = content.get("stream"), content.get("data")
        if isinstance(stream, str) and isinstance(inner, dict):
            name, _, channel = stream.partition("@")
            self._sort_bare(channel, name.upper(), inner, recv_us, data, rows)
        elif "result" in content or "code" in content or "error" in content:
            self._sort_answer(content, recv_us, data, rows)
        else:
            channel = _channel_of(content)
            self._sort_bare(channel, str(content.get("s")), content, recv_us, data, rows)

    def _sort_answer(self, content: dict[str, Any], recv_us: int, data: bytes, rows: _Rows) -> None:
        if "result" in content and "error" not in content:
            rows.mapped.control += 1
        else:
            detail = str(content.get("msg") or content.get("error") or content)
            rows.refuse("exchange_error", data, detail, recv_us)

    def _sort_bare(
        self,
        channel: str,
        symbol: str,
        content: dict[str, Any],
        recv_us: int,
        data: bytes,
        rows: _Rows,
    ) -> None:
        if not channel:
            rows.refuse("unknown_frame", data, "neither a stream nor an event", recv_us)
        elif channel not in self._channels:
            rows.mapped.ignored[channel] += 1
        elif symbol not in self._assets:
            rows.refuse("unknown_symbol", data, f"{symbol[:40]!r} is not subscribed", recv_us)
        elif channel == "trade":
            rows.add_trade(msgspec.convert(content, Trade), symbol, recv_us, data)
        elif channel == "aggTrade":
            rows.add_agg_trade(msgspec.convert(content, AggTrade), symbol, recv_us, data)
        else:
            rows.add_quote(msgspec.convert(content, BookTicker), symbol, recv_us, data)

    def _trade_batch(self, rows: _Rows, ingestion_us: int, is_backfill: bool) -> pa.RecordBatch:
        trades = rows.trades
        ids = np.fromiter((trade.t for trade in trades), np.int64, len(trades))
        columns = self._trade_columns(trades, ids, rows.trade_recv_us, ingestion_us)
        return build("trades", len(trades), {**columns, "is_backfill": is_backfill})

    def _agg_batch(self, rows: _Rows, ingestion_us: int, is_backfill: bool) -> pa.RecordBatch:
        trades = rows.agg_trades
        count = len(trades)
        ids = np.fromiter((trade.a for trade in trades), np.int64, count)
        columns = {
            **self._trade_columns(trades, ids, rows.agg_recv_us, ingestion_us),
            "first_trade_id": np.fromiter((trade.f for trade in trades), np.int64, count),
            "last_trade_id": np.fromiter((trade.l for trade in trades), np.int64, count),
            "is_backfill": is_backfill,
        }
        return build("agg_trades", count, columns)

    def _trade_columns(
        self,
        trades: Sequence[Trade | AggTrade],
        ids: npt.NDArray[np.int64],
        recv_us: list[int],
        ingestion_us: int,
    ) -> dict[str, Any]:
        """All rows in order; rows without `M` differ in their vendor_data only."""
        count, exchange = len(trades), self._exchange
        times_ms = np.fromiter((trade.T for trade in trades), np.int64, count)
        bases, quotes = self._asset_columns([trade.s for trade in trades])
        return {
            "message_id": [
                f"{exchange}:{t.T}:{t.s}:{ident}"
                for t, ident in zip(trades, ids.tolist(), strict=True)
            ],
            "trade_id": pa.array(ids).cast(_TEXT),
            "symbol": [trade.s for trade in trades],
            "exchange": exchange,
            "asset_class": self._asset_class,
            "timestamp": times_ms * 1_000,
            "receive_timestamp": np.array(recv_us, np.int64),
            "ingestion_timestamp": np.full(count, ingestion_us, np.int64),
            "price": [trade.p for trade in trades],
            "quantity": [trade.q for trade in trades],
            "currency": quotes,
            "side": ["SELL" if trade.m else "BUY" for trade in trades],
            "trade_conditions": _conditions(trades),
            "source_sequence": ids,
            "vendor_data": _trade_vendor(trades, times_ms, bases, quotes),
        }

    def _quote_batch(self, rows: _Rows, ingestion_us: int, is_backfill: bool) -> pa.RecordBatch:
        quotes = rows.quotes
        count = len(quotes)
        exchange = self._exchange
        recv_us = np.array(rows.quote_recv_us, np.int64)
        times_us = [
            us if quote.T is None else quote.T * 1_000
            for us, quote in zip(rows.quote_recv_us, quotes, strict=True)
        ]
        ids = np.fromiter((quote.u for quote in quotes), np.int64, count)
        bases, currencies = self._asset_columns([quote.s for quote in quotes])
        vendor = {
            "base_asset": bases,
            "quote_asset": currencies,
            "timestamp_source": pa.array(
                ["receive" if quote.T is None else "exchange" for quote in quotes]
            ),
        }
        return build(
            "quotes",
            count,
            {
                "message_id": [
                    f"{exchange}:{us // 1_000}:{q.s}:{q.u}"
                    for us, q in zip(times_us, quotes, strict=True)
                ],
                "quote_id": pa.array(ids).cast(_TEXT),
                "symbol": [quote.s for quote in quotes],
                "exchange": exchange,
                "asset_class": self._asset_class,
                "timestamp": np.array(times_us, np.int64),
                "receive_timestamp": recv_us,
                "ingestion_timestamp": np.full(count, ingestion_us, np.int64),
                "bid_price": [quote.b for quote in quotes],
                "bid_quantity": [quote.B for quote in quotes],
                "ask_price": [quote.a for quote in quotes],
                "ask_quantity": [quote.A for quote in quotes],
                "currency": currencies,
                "source_sequence": ids,
                "vendor_data": vendor_map(count, vendor),
                "is_backfill": is_backfill,
            },
        )

    def _asset_columns(self, symbols: list[str]) -> tuple[pa.Array, pa.Array]:
        """(base, quote) per row."""
        pairs = [self._assets[symbol] for symbol in symbols]
        return pa.array([base for base, _ in pairs]), pa.array([quote for _, quote in pairs])


class _Rows:
    """Decoded frames by kind, with their receive times."""

    def __init__(self) -> None:
        self.trades: list[Trade] = []
        self.trade_recv_us: list[int] = []
        self.agg_trades: list[AggTrade] = []
        self.agg_recv_us: list[int] = []
        self.quotes: list[BookTicker] = []
        self.quote_recv_us: list[int] = []
        self.mapped = Mapped()

    def add_trade(self, trade: Trade, symbol: str, recv_us: int, data: bytes) -> None:
        if trade.s == symbol:
            self.trades.append(trade)
            self.trade_recv_us.append(recv_us)
        else:
            self._mismatch(trade.s, symbol, data, recv_us)

    def add_agg_trade(self, trade: AggTrade, symbol: str, recv_us: int, data: bytes) -> None:
        if trade.s == symbol:
            self.agg_trades.append(trade)
            self.agg_recv_us.append(recv_us)
        else:
            self._mismatch(trade.s, symbol, data, recv_us)

    def add_quote(self, quote: BookTicker, symbol: str, recv_us: int, data: bytes) -> None:
        if quote.s == symbol:
            self.quotes.append(quote)
            self.quote_recv_us.append(recv_us)
        else:
            self._mismatch(quote.s, symbol, data, recv_us)

    def refuse(self, reason: str, data: bytes, detail: str, recv_us: int) -> None:
        self.mapped.refused.append(Refused(reason, data, detail, recv_us))

    def _mismatch(self, found: str, symbol: str, data: bytes, recv_us: int) -> None:
        detail = f"symbol {found[:40]!r} in the stream of {symbol!r}"
        self.refuse("symbol_mismatch", data, detail, recv_us)


def _channel_of(content: dict[str, Any]) -> str:
    """The channel of a frame from a raw stream; book tickers of the spot market name no event."""
    event = content.get("e")
    if isinstance(event, str):
        return event
    return "bookTicker" if {"u", "b", "B", "a", "A"} <= content.keys() else ""


def _conditions(trades: Sequence[Trade | AggTrade]) -> pa.Array:
    """What a fill was if not an ordinary one: of the insurance fund, of an auto-deleveraging."""
    unusual = [[trade.X] if trade.X not in _ORDINARY else [] for trade in trades]
    return pa.array(unusual, pa.list_(pa.string()))


def _trade_vendor(
    trades: Sequence[Trade | AggTrade],
    times_ms: npt.NDArray[np.int64],
    bases: pa.Array,
    quotes: pa.Array,
) -> pa.Array:
    count = len(trades)
    columns = {
        "is_buyer_maker": pa.array(["true" if trade.m else "false" for trade in trades]),
        "event_type": trades[0].e,
        "event_time": _as_text(np.fromiter((trade.E for trade in trades), np.int64, count)),
        "trade_time": _as_text(times_ms),
        "base_asset": bases,
        "quote_asset": quotes,
    }
    best = [trade.M for trade in trades]
    texts = pa.array(["true" if value else "false" for value in best])
    full = vendor_map(count, {**columns, "is_best_match": texts})
    if None not in best:
        return full
    bare = vendor_map(count, columns)
    chosen = [row if value is None else row + count for row, value in enumerate(best)]
    return pa.concat_arrays([bare, full]).take(pa.array(chosen))


def _as_text(values: npt.NDArray[np.int64]) -> pa.Array:
    return pa.array(values).cast(_TEXT)
