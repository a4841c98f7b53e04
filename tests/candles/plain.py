"""Candles the plain way: one trade after another, in Python, over everything at once."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import Any

import pyarrow as pa

from k2.timeframes import FRAMES_US


def candles(trades: pa.Table, exclude: Iterable[str] = ()) -> dict[tuple[Any, ...], dict[str, Any]]:
    """(symbol, exchange, timeframe, window start in µs) -> open, high, …; from lake rows."""
    rows = trades.set_column(
        trades.column_names.index("timestamp"), "timestamp", trades["timestamp"].cast(pa.int64())
    ).to_pylist()
    rows = [row for row in rows if not set(row["trade_conditions"] or ()) & set(exclude)]
    rows.sort(key=lambda row: (row["timestamp"], row["platform_sequence"], row["price"]))
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        for frame, step_us in FRAMES_US.items():
            start_us = row["timestamp"] // step_us * step_us
            _add(found, (row["symbol"], row["exchange"], frame, start_us), row)
    with localcontext(prec=80):
        for candle in found.values():
            exact = candle["notional"] / candle["volume"]
            candle["vwap"] = exact.quantize(Decimal("1e-8"), ROUND_HALF_UP)
    return found


def _add(found: dict[tuple[Any, ...], dict[str, Any]], key: tuple[Any, ...], row: Any) -> None:
    price, quantity = row["price"], row["quantity"]
    with localcontext(prec=80):
        candle = found.setdefault(
            key,
            {"open": price, "high": price, "low": price, "volume": Decimal(0),
             "notional": Decimal(0), "trade_count": 0},
        )  # fmt: skip
        candle["high"] = max(candle["high"], price)
        candle["low"] = min(candle["low"], price)
        candle["close"] = price
        candle["volume"] += quantity
        candle["notional"] += price * quantity
        candle["trade_count"] += 1


def table(found: pa.Table) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Rows of states or of the lake's newest versions, in the same form."""
    starts = found["window_start"].cast(pa.int64()).to_pylist()
    made = {}
    for row, start_us in zip(found.to_pylist(), starts, strict=True):
        names = ("open", "high", "low", "close", "volume", "notional", "trade_count", "vwap")
        key = (row["symbol"], row["exchange"], row["timeframe"], start_us)
        assert key not in made, "a window is there twice"
        made[key] = {name: row[name] for name in names}
    return made
