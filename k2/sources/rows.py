"""Rows of records gathered frame by frame, for exchanges whose frames hold several or few."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from k2.records import VENDOR_MAP, build
from k2.sources.contract import Mapped, Received
from k2.sources.refused import DECODE_ERRORS, Refused, undecodable


class Pair(NamedTuple):
    """A symbol as K2 writes it, and what it is made of."""

    symbol: str
    base: str
    quote: str


class TradeRow(NamedTuple):
    """One trade; price and quantity are the exchange's digits, times microseconds UTC."""

    pair: Pair
    trade_id: str
    time_us: int
    recv_us: int
    price: str
    quantity: str
    side: str
    sequence: int | None
    vendor: dict[str, str]


class QuoteRow(NamedTuple):
    """One book ticker, likewise."""

    pair: Pair
    quote_id: str
    time_us: int
    recv_us: int
    bid: str
    bid_quantity: str
    ask: str
    ask_quantity: str
    sequence: int | None
    vendor: dict[str, str]


@dataclass(slots=True)
class Rows:
    """What the frames of one call became."""

    exchange: str
    asset_class: str
    trades: list[TradeRow] = field(default_factory=list)
    quotes: list[QuoteRow] = field(default_factory=list)
    mapped: Mapped = field(default_factory=Mapped)

    def refuse(self, reason: str, data: bytes, detail: str, recv_us: int) -> None:
        self.mapped.refused.append(Refused(reason, data, detail, recv_us))

    def finish(self, ingestion_us: int, is_backfill: bool) -> Mapped:
        """All rows as columns, in their order."""
        mapped = self.mapped
        if self.trades:
            mapped.trades = self._trade_batch(ingestion_us, is_backfill)
            last = self.trades[-1]
            mapped.delay_us = last.recv_us - last.time_us
        if self.quotes:
            mapped.quotes = self._quote_batch(ingestion_us, is_backfill)
        return mapped

    def _trade_batch(self, ingestion_us: int, is_backfill: bool) -> pa.RecordBatch:
        rows = self.trades
        columns = {
            **self._common(rows, ingestion_us, is_backfill),
            "message_id": [
                f"{self.exchange}:{r.time_us // 1_000}:{r.pair.symbol}:{r.trade_id}" for r in rows
            ],
            "trade_id": [row.trade_id for row in rows],
            "price": [row.price for row in rows],
            "quantity": [row.quantity for row in rows],
            "side": [row.side for row in rows],
        }
        return build("trades", len(rows), columns)

    def _quote_batch(self, ingestion_us: int, is_backfill: bool) -> pa.RecordBatch:
        rows = self.quotes
        columns = {
            **self._common(rows, ingestion_us, is_backfill),
            "message_id": [
                f"{self.exchange}:{r.time_us // 1_000}:{r.pair.symbol}:{r.quote_id}" for r in rows
            ],
            "quote_id": [row.quote_id for row in rows],
            "bid_price": [row.bid for row in rows],
            "bid_quantity": [row.bid_quantity for row in rows],
            "ask_price": [row.ask for row in rows],
            "ask_quantity": [row.ask_quantity for row in rows],
        }
        return build("quotes", len(rows), columns)

    def _common(
        self, rows: list[TradeRow] | list[QuoteRow], ingestion_us: int, is_backfill: bool
    ) -> dict[str, Any]:
        return {
            "symbol": [row.pair.symbol for row in rows],
            "exchange": self.exchange,
            "asset_class": self.asset_class,
            "timestamp": np.fromiter((row.time_us for row in rows), np.int64, len(rows)),
            "receive_timestamp": np.fromiter((row.recv_us for row in rows), np.int64, len(rows)),
            "ingestion_timestamp": np.full(len(rows), ingestion_us, np.int64),
            "currency": [row.pair.quote for row in rows],
            "source_sequence": [row.sequence for row in rows],
            "vendor_data": pa.array([_vendor(row) for row in rows], VENDOR_MAP),
            "is_backfill": is_backfill,
        }


def _vendor(row: TradeRow | QuoteRow) -> list[tuple[str, str]]:
    return [*row.vendor.items(), ("base_asset", row.pair.base), ("quote_asset", row.pair.quote)]


class RowMapper(ABC):
    """A `FrameMapper` for frames that become rows one by one; the exchange says how in `_sort`.

    `pairs`: the subscribed symbols by the exchange's own names.
    """

    exchange: ClassVar[str]

    def __init__(self, pairs: Mapping[str, Pair]) -> None:
        self._pairs = pairs

    def map(
        self, frames: Sequence[Received], *, ingestion_us: int, is_backfill: bool = False
    ) -> Mapped:
        rows = Rows(self.exchange, "crypto")
        for recv_us, data in frames:
            try:
                self._sort(data, recv_us, rows)
            except DECODE_ERRORS as exc:
                rows.mapped.refused.append(undecodable(exc, data, recv_us))
        return rows.finish(ingestion_us, is_backfill)

    @abstractmethod
    def _sort(self, data: bytes, recv_us: int, rows: Rows) -> None:
        """Add what one frame holds to `rows`; may raise any of `DECODE_ERRORS`."""

    def _pair_of(self, name: str, data: bytes, recv_us: int, rows: Rows) -> Pair | None:
        """The pair of the exchange's `name`; None when it is not ours, then `data` is refused."""
        pair = self._pairs.get(name)
        if pair is None:
            rows.refuse("unknown_symbol", data, f"{name[:40]!r} is not subscribed", recv_us)
        return pair
