"""Rows with chosen symbols, times and places, as the lake's tables hold them."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from k2.lake.tables import QUOTES, TRADES, TableDef
from k2.lake.vector import Place, Position

EPOCH = "6d6db740-925d-4ae8-a980-8fd032948127"
OTHER_EPOCH = "0c6f1f0e-6a43-4cc4-9d4b-1a6f5d8f9b11"
T0_US = 1_723_161_500_000_000
_UTC = pa.timestamp("us", tz="UTC")


def place(partition: int = 0, *, epoch: str = EPOCH, kind: str = "trades") -> Place:
    return Place(epoch, f"market.crypto.{kind}.binance.validated", partition)


def upto(sequence: int) -> Position:
    return Position(sequence + 1, sequence)


def rows(
    sequences: Sequence[int],
    times_us: Sequence[int],
    *,
    symbols: Sequence[str] | str = "BTCUSDT",
    exchange: str = "BINANCE",
    prices: Sequence[Decimal] | None = None,
    quantities: Sequence[Decimal] | None = None,
    partition: int = 0,
    epoch: str = EPOCH,
    vendor_data: str | None = None,
    table: TableDef = TRADES,
) -> pa.Table:
    n = len(sequences)
    names = [symbols] * n if isinstance(symbols, str) else list(symbols)
    ids = [str(1_000_000 + sequence) for sequence in sequences]
    amounts = pa.array(prices or [Decimal(s) / 4 for s in sequences], pa.decimal128(28, 10))
    sizes = pa.array(quantities or [Decimal("0.5")] * n, pa.decimal128(28, 10))
    times = pa.array(np.array(times_us, np.int64), _UTC)
    columns: dict[str, Any] = {
        "message_id": [
            f"{exchange}:{t // 1000}:{s}:{i}" for t, s, i in zip(times_us, names, ids, strict=True)
        ],
        "trade_id": ids,
        "quote_id": ids,
        "symbol": names,
        "exchange": [exchange] * n,
        "asset_class": ["crypto"] * n,
        "timestamp": times,
        "receive_timestamp": times,
        "ingestion_timestamp": times,
        "currency": ["USDT"] * n,
        "source_sequence": pa.nulls(n, pa.int64()),
        "vendor_data": pa.array([vendor_data] * n, pa.string()),
        "is_backfill": [False] * n,
        "log_epoch": [epoch] * n,
        "log_topic": [f"market.crypto.{table.name}.binance"] * n,
        "log_partition": pa.array([partition] * n, pa.int32()),
        "platform_sequence": pa.array(list(sequences), pa.int64()),
        "price": amounts,
        "quantity": sizes,
        "side": ["BUY"] * n,
        "trade_conditions": pa.array([[]] * n, pa.list_(pa.string())),
        "bid_price": amounts,
        "bid_quantity": sizes,
        "ask_price": amounts,
        "ask_quantity": sizes,
        "quote_conditions": pa.array([["LOCKED"]] * n, pa.list_(pa.string())),
    }
    assert table in (TRADES, QUOTES)
    made = pa.table({name: columns[name] for name in table.arrow_schema.names})
    return made.cast(table.arrow_schema)


def batch(table: pa.Table) -> pa.RecordBatch:
    return table.combine_chunks().to_batches()[0]


def sequences_of(table: pa.Table) -> np.ndarray:
    return table["platform_sequence"].to_numpy()
