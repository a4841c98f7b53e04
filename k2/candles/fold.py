"""Candles as a fold over trades: pure, exact, and the same in whatever order and pieces they come.

A *state* is all there is to know of a window so far: beside open, high, low and close, which trade
was first and which last, and the sums. Two states of a window merge into one, and a trade is the
state of a window with one trade, so late trades correct a candle and nothing has to be kept in
order. First and last are by (timestamp, platform_sequence); between equals of two incarnations of a
log the price decides, so that there is only one answer.
"""

from __future__ import annotations

import decimal
from collections.abc import Iterable
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from k2.timeframes import FRAMES_US

#: What trades are folded into first; every other timeframe is a multiple of it.
BASE: Final = "1m"

_PRICE: Final = pa.decimal128(28, 10)
_VOLUME: Final = pa.decimal128(38, 10)
_NOTIONAL: Final = pa.decimal128(38, 20)
_WIDE: Final = pa.decimal256(58, 20)
#: Of 31 digits with its ten decimals.
_MOST_VOLUME: Final = decimal.Decimal(10) ** 21
_TIME: Final = pa.timestamp("us", tz="UTC")

#: Columns of states. `notional`: sum of price * quantity; null from where a decimal(38,20) cannot
#: hold it, for an absurd trade must not stop the stream.
STATE: Final = pa.schema(
    [
        pa.field("symbol", pa.string(), nullable=False),
        pa.field("exchange", pa.string(), nullable=False),
        pa.field("timeframe", pa.string(), nullable=False),
        pa.field("window_start", _TIME, nullable=False),
        pa.field("open", _PRICE, nullable=False),
        pa.field("high", _PRICE, nullable=False),
        pa.field("low", _PRICE, nullable=False),
        pa.field("close", _PRICE, nullable=False),
        pa.field("volume", _VOLUME, nullable=False),
        pa.field("notional", _NOTIONAL),
        pa.field("trade_count", pa.int64(), nullable=False),
        pa.field("first_timestamp", _TIME, nullable=False),
        pa.field("first_sequence", pa.int64(), nullable=False),
        pa.field("last_timestamp", _TIME, nullable=False),
        pa.field("last_sequence", pa.int64(), nullable=False),
    ]
)
KEYS: Final = ("symbol", "exchange", "timeframe", "window_start")
_LIMIT: Final = pa.scalar(decimal.Decimal(10**18 - 1), _WIDE)
_SUM: Final = pc.ScalarAggregateOptions(skip_nulls=False)
#: Of a trade (lake columns), what candles are folded from.
TRADE_COLUMNS: Final = [
    "symbol", "exchange", "timestamp", "price", "quantity", "trade_conditions", "platform_sequence",
]  # fmt: skip


def of_trades(trades: pa.Table | pa.RecordBatch, exclude: frozenset[str] = frozenset()) -> pa.Table:
    """States of the 1-minute windows these trades (lake columns, any order) fall into.

    `exclude`: condition codes; a trade with one of them makes no price.
    """
    rows = pa.Table.from_batches([trades]) if isinstance(trades, pa.RecordBatch) else trades
    rows = _on_market(rows.select(TRADE_COLUMNS), exclude)
    if not rows.num_rows:
        return STATE.empty_table()
    times, price, quantity = rows["timestamp"], rows["price"], rows["quantity"]
    size = rows.num_rows
    made = {
        "symbol": rows["symbol"],
        "exchange": rows["exchange"],
        "timeframe": pa.repeat(BASE, size),
        "window_start": _floored(times, BASE),
        **dict.fromkeys(("open", "high", "low", "close"), price),
        "volume": quantity.cast(_VOLUME),
        "notional": _bounded(
            pc.multiply(price.cast(pa.decimal256(28, 10)), quantity.cast(pa.decimal256(28, 10)))
        ),
        "trade_count": pa.array(np.ones(size, np.int64)),
        **dict.fromkeys(("first_timestamp", "last_timestamp"), times),
        **dict.fromkeys(("first_sequence", "last_sequence"), rows["platform_sequence"]),
    }
    return merge([pa.table([made[name] for name in STATE.names], schema=STATE)])


def in_frame(minutes: pa.Table, timeframe: str) -> pa.Table:
    """States of one timeframe from those of 1-minute windows."""
    return merge([_as_frame(minutes, timeframe)])


def merge(states: Iterable[pa.Table]) -> pa.Table:
    """One state per window out of any number, ordered by `KEYS`."""
    rows = pa.concat_tables([STATE.empty_table(), *states]).combine_chunks()
    if not rows.num_rows:
        return rows
    firsts = pc.sort_indices(rows, _rising("first_timestamp", "first_sequence", "open"))
    lasts = pc.sort_indices(rows, _rising("last_timestamp", "last_sequence", "close"))
    grouped = (
        rows.select([*KEYS, "high", "low", "volume", "trade_count"])
        .append_column("notional", rows["notional"].cast(_WIDE))
        .append_column("first", _ranks(firsts))
        .append_column("last", _ranks(lasts))
        .group_by(list(KEYS), use_threads=False)
        .aggregate(
            [
                ("high", "max"),
                ("low", "min"),
                ("volume", "sum"),
                ("notional", "sum", _SUM),
                ("trade_count", "sum"),
                ("first", "min"),
                ("last", "max"),
            ]
        )
        .sort_by(_rising(*KEYS))
    )
    first = rows.take(firsts.take(grouped["first_min"]))
    last = rows.take(lasts.take(grouped["last_max"]))
    made = {
        **{name: grouped[name] for name in KEYS},
        "open": first["open"],
        "high": grouped["high_max"],
        "low": grouped["low_min"],
        "close": last["close"],
        "volume": grouped["volume_sum"].cast(_VOLUME),
        "notional": _bounded(grouped["notional_sum"]),
        "trade_count": grouped["trade_count_sum"],
        "first_timestamp": first["first_timestamp"],
        "first_sequence": first["first_sequence"],
        "last_timestamp": last["last_timestamp"],
        "last_sequence": last["last_sequence"],
    }
    return pa.table([made[name] for name in STATE.names], schema=STATE).combine_chunks()


def roll_up(minutes: pa.Table, timeframes: Iterable[str] = tuple(FRAMES_US)) -> pa.Table:
    """States of every timeframe asked for from those of 1-minute windows."""
    return merge(_as_frame(minutes, name) for name in timeframes)


def vwaps(states: pa.Table) -> pa.Array:
    """notional / volume with 8 decimals, rounded half up; null where there is no notional."""
    traded = pc.max(states["volume"]).as_py()
    if traded is not None and traded >= _MOST_VOLUME:
        return _vwaps_one_by_one(states)
    notional = _units(states["notional"]).cast(pa.decimal256(38))
    volume = _units(states["volume"])
    volume = pc.if_else(pc.equal(volume, 0), None, volume).cast(pa.decimal256(31))
    doubled = pc.add(_times(notional, 2), _times(volume, 100)).cast(pa.decimal256(40))
    # Both are whole, so what the quotient leaves behind 36 decimals is less than any fraction.
    hundred_millionths = pc.floor(pc.divide(doubled, _times(volume, 200)))
    return _retyped(hundred_millionths.cast(pa.decimal128(28)), pa.decimal128(28, 8)).cast(_PRICE)


def _vwaps_one_by_one(states: pa.Table) -> pa.Array:
    """The same for volumes that leave the quotient no room in 76 digits."""
    found: list[decimal.Decimal | None] = []
    with decimal.localcontext(prec=80):
        for notional, volume in zip(
            states["notional"].to_pylist(), states["volume"].to_pylist(), strict=True
        ):
            if notional is None or not volume:
                found.append(None)
                continue
            top, bottom = int(notional.scaleb(20)), int(volume.scaleb(10))
            found.append(decimal.Decimal((2 * top + 100 * bottom) // (200 * bottom)).scaleb(-8))
    return pa.array(found, _PRICE)


def _units(values: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Decimals as whole numbers of their last digit."""
    whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return _retyped(whole, pa.decimal128(38))


def _retyped(values: pa.Array, kind: pa.Decimal128Type) -> pa.Array:
    """The same digits with the decimal point elsewhere."""
    buffers = values.buffers()
    return pa.Array.from_buffers(kind, len(values), buffers, values.null_count, values.offset)


def _times(values: pa.Array, factor: int) -> pa.Array:
    digits = pa.decimal256(len(str(factor)))
    return pc.multiply(values, pa.scalar(decimal.Decimal(factor), digits))


def _on_market(rows: pa.Table, exclude: frozenset[str]) -> pa.Table:
    if not exclude or not rows.num_rows:
        return rows
    conditions = rows["trade_conditions"].combine_chunks()
    if isinstance(conditions, pa.ChunkedArray):
        conditions = pa.concat_arrays(conditions.chunks)
    hit = pc.is_in(pc.list_flatten(conditions), pa.array(sorted(exclude)))
    off = pc.list_parent_indices(conditions).filter(hit)
    kept = np.ones(rows.num_rows, np.bool_)
    kept[off.to_numpy()] = False
    return rows.filter(pa.array(kept))


def _as_frame(minutes: pa.Table, timeframe: str) -> pa.Table:
    starts = _floored(minutes["window_start"], timeframe)
    names = pa.repeat(timeframe, minutes.num_rows)
    changed = minutes.set_column(2, STATE.field("timeframe"), names)
    return changed.set_column(3, STATE.field("window_start"), starts)


def _floored(times: pa.ChunkedArray, timeframe: str) -> pa.Array:
    step_us = FRAMES_US[timeframe]
    us = times.cast(pa.int64()).to_numpy()
    return pa.array(us - us % step_us).cast(_TIME)


def _bounded(notional: pa.ChunkedArray) -> pa.ChunkedArray:
    """As decimal(38,20), null where that cannot hold it."""
    wide = notional.cast(_WIDE)
    return pc.if_else(pc.less_equal(pc.abs(wide), _LIMIT), wide, None).cast(_NOTIONAL)


def _ranks(order: pa.Array) -> pa.Array:
    """The place of each row in an order given by row numbers."""
    ranks = np.empty(len(order), np.int64)
    ranks[order.to_numpy()] = np.arange(len(order))
    return pa.array(ranks)


def _rising(*names: str) -> list[tuple[str, str]]:
    return [(name, "ascending") for name in names]
