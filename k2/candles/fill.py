"""Candles without holes: a window without trades has the close before it, and no volume."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_TIME = pa.timestamp("us", tz="UTC")
_PRICES = ("open", "high", "low", "close")


def filled_forward(
    candles: pa.Table,
    symbol: str,
    before: Mapping[str, Decimal],
    step_us: int,
    begin_us: int,
    end_us: int,
    limit: int,
) -> pa.Table:
    """`candles` of a symbol (as of /v1/ohlcv) and the windows between and after them, newest first.

    Per exchange, from `begin_us` where `before` has the price in force then, else from its first
    candle, to the last window that begins before `end_us`; at most the newest `limit` rows in all.
    Filled ones have `trade_count` 0, `volume` 0 and no `vwap`.
    """
    parts = []
    for exchange in sorted({*candles["exchange"].to_pylist(), *before}):
        rows = candles.filter(pc.field("exchange") == exchange)
        if exchange in before:
            rows = pa.concat_tables(
                [
                    _flat(candles.schema, symbol, exchange, before[exchange], begin_us - step_us),
                    rows,
                ]
            )
        parts.append(_one(rows, step_us, begin_us, end_us, limit))
    if not parts:
        return candles
    order = [("window_start", "descending"), ("symbol", "ascending"), ("exchange", "ascending")]
    return pa.concat_tables(parts).sort_by(order).slice(0, limit)


def _flat(schema: pa.Schema, symbol: str, exchange: str, price: Decimal, start_us: int) -> pa.Table:
    """The window before the period: only its close is ever seen."""
    row = {
        "symbol": symbol,
        "exchange": exchange,
        "window_start": start_us,
        "window_end": start_us,
        **dict.fromkeys(_PRICES, price),
        "volume": Decimal(0),
        "trade_count": 0,
        "vwap": None,
    }
    return pa.Table.from_pylist([row], schema=schema)


def _one(candles: pa.Table, step_us: int, begin_us: int, end_us: int, limit: int) -> pa.Table:
    rising = candles.sort_by("window_start")
    starts = rising["window_start"].cast(pa.int64()).to_numpy()
    last = max(int(starts[-1]), (end_us - 1) // step_us * step_us)
    first = max(int(starts[0]), begin_us, last - (limit - 1) * step_us)
    windows = np.arange(first, last + step_us, step_us)
    at = np.searchsorted(starts, windows, side="right") - 1
    real = pa.array(starts[at] == windows)
    rows = rising.take(pa.array(at))
    close = rows["close"]
    made = {
        "window_start": pa.array(windows).cast(_TIME),
        "window_end": pa.array(windows + step_us).cast(_TIME),
        **{name: pc.if_else(real, rows[name], close) for name in _PRICES},
        "volume": pc.if_else(real, rows["volume"], pa.scalar(0).cast(rows["volume"].type)),
        "trade_count": pc.if_else(real, rows["trade_count"], 0),
        "vwap": pc.if_else(real, rows["vwap"], pa.scalar(None, rows["vwap"].type)),
    }
    columns = [made[name] if name in made else rows[name] for name in rows.column_names]
    return pa.table(columns, names=rows.column_names).cast(candles.schema)
