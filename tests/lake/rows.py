"""Rows of the lake's tables for tests: small, deterministic, of several days and symbols."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa

from k2.lake.tables import QUOTES, TRADES, TableDef
from k2.lake.vector import Place, Position

EPOCH = "6d6db740-925d-4ae8-a980-8fd032948127"
LOG = "market.crypto.trades.binance"
T0_US = 1_723_161_500_000_000  # 2024-08-08 23:58:20 UTC
_UTC = pa.timestamp("us", tz="UTC")


def place(partition: int = 0, epoch: str = EPOCH) -> Place:
    return Place(epoch, f"{LOG}.validated", partition)


def upto(offset: int) -> Position:
    return Position(offset, offset - 1)


def trades(
    ids: list[int] | range,
    *,
    symbols: tuple[str, ...] = ("BTCUSDT", "ETHUSDT", "PEPEUSDT"),
    partition: int = 0,
    epoch: str = EPOCH,
    table: TableDef = TRADES,
    step_us: int = 1_000_000,
) -> pa.Table:
    """One row per id, in that order; symbols in turn, one second apart across midnight."""
    n = len(ids)
    names = [symbols[i % len(symbols)] for i in range(n)]
    times = np.array([T0_US + i * step_us for i in ids], np.int64)
    id_name = "trade_id" if table is TRADES else "quote_id"
    texts = [f"BINANCE:{t // 1000}:{s}:{i}" for t, s, i in zip(times, names, ids, strict=True)]
    columns = {
        "message_id": pa.array(texts),
        id_name: pa.array([str(i) for i in ids]),
        "symbol": pa.array(names),
        "exchange": pa.array(["BINANCE"] * n),
        "asset_class": pa.array(["crypto"] * n),
        "timestamp": pa.array(times, _UTC),
        "receive_timestamp": pa.array(times + 5, _UTC),
        "ingestion_timestamp": pa.array(times + 9, _UTC),
        "currency": pa.array(["USDT"] * n),
        "source_sequence": pa.array(list(ids), pa.int64()),
        "vendor_data": pa.nulls(n, pa.string()),
        "is_backfill": pa.array([False] * n),
        "log_epoch": pa.array([epoch] * n),
        "log_topic": pa.array([LOG if table is TRADES else LOG.replace("trades", "quotes")] * n),
        "log_partition": pa.array([partition] * n, pa.int32()),
        "platform_sequence": pa.array(list(ids), pa.int64()),
    }
    amounts = pa.array([Decimal(i) + Decimal("0.0000000001") for i in ids], pa.decimal128(28, 10))
    if table is TRADES:
        columns |= {
            "price": amounts,
            "quantity": amounts,
            "side": pa.array(["BUY"] * n),
            "trade_conditions": pa.array([["x", None]] * n, pa.list_(pa.string())),
        }
    else:
        assert table is QUOTES
        columns |= dict.fromkeys(
            ("bid_price", "bid_quantity", "ask_price", "ask_quantity"), amounts
        )
        columns["quote_conditions"] = pa.nulls(n, pa.list_(pa.string()))
    return pa.table(columns).select(table.arrow_schema.names)
