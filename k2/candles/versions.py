"""Candles as rows of the lake: append-only versions of a window, the highest of which counts."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from k2.candles.fold import KEYS, STATE, merge, vwaps
from k2.lake.tables import CANDLES
from k2.timeframes import FRAMES_US

#: States as the lake has them: each with its version.
VERSIONED: Final = STATE.append(pa.field("version", pa.int64(), nullable=False))
_KEYS: Final = list(KEYS)
_TIME: Final = pa.timestamp("us", tz="UTC")


def newest(rows: pa.Table) -> pa.Table:
    """One row per window out of `VERSIONED` ones: the highest version, ordered by the keys."""
    ordered = rows.sort_by([*((name, "ascending") for name in KEYS), ("version", "ascending")])
    if ordered.num_rows < 2:
        return ordered
    keys = [ordered[name].combine_chunks() for name in KEYS]
    same = np.ones(ordered.num_rows - 1, np.bool_)
    for key in keys:
        same &= pc.equal(key.slice(1), key.slice(0, len(key) - 1)).to_numpy(zero_copy_only=False)
    return ordered.filter(pa.array(np.append(~same, True)))


def of_windows(rows: pa.Table, windows: pa.Table) -> pa.Table:
    """The rows of `windows` (a table with the keys)."""
    return _joined(rows, windows, "left semi")


def not_of(rows: pa.Table, windows: pa.Table) -> pa.Table:
    """The rows of all windows but these."""
    return _joined(rows, windows, "left anti")


def corrected(known: pa.Table, fresh: pa.Table) -> pa.Table:
    """The next versions of the windows in `fresh` (states), on top of `known` (newest versions).

    Ordered by the keys; a window that is not known yet becomes version 1.
    """
    states = merge([known.filter(pc.field("trade_count") > 0).select(STATE.names), fresh])
    return _numbered(states, known)


def replaced(known: pa.Table, right: pa.Table) -> pa.Table:
    """Versions that put the states `right` in the place of what is `known`.

    A window that is known and not right becomes one without trades, which counts as absent.
    """
    gone = not_of(known, right)
    at = gone.column_names.index("trade_count")
    none = pa.array(np.zeros(gone.num_rows, np.int64))
    emptied = gone.set_column(at, STATE.field("trade_count"), none).select(STATE.names)
    return _numbered(merge([right, emptied]), known)


def lake_rows(versions: pa.Table, now_us: int) -> pa.Table:
    """Rows of `market_data.candles`."""
    made = {
        "window_end": _ends(versions),
        "vwap": vwaps(versions),
        "updated_at": pa.repeat(pa.scalar(now_us, pa.int64()).cast(_TIME), versions.num_rows),
    }
    columns = [made[name] if name in made else versions[name] for name in _NAMES]
    return pa.table(columns, schema=CANDLES.arrow_schema)


def shown(states: pa.Table) -> pa.Table:
    """Candles as `/v1/ohlcv` has them, and their timeframe."""
    made = {"window_end": _ends(states), "vwap": vwaps(states)}
    return pa.table({name: made[name] if name in made else states[name] for name in _SHOWN})


_SHOWN: Final = (
    "symbol", "exchange", "timeframe", "window_start", "window_end", "open", "high", "low", "close",
    "volume", "trade_count", "vwap",
)  # fmt: skip


def _ends(states: pa.Table) -> pa.Array:
    """The first moment after each window."""
    starts = states["window_start"].cast(pa.int64()).to_numpy()
    widths = np.array([FRAMES_US[name] for name in states["timeframe"].to_pylist()], np.int64)
    return pa.array(starts + widths).cast(_TIME)


_NAMES: Final = CANDLES.arrow_schema.names


def _numbered(states: pa.Table, known: pa.Table) -> pa.Table:
    """`states`, ordered by the keys, each with the version after the known one."""
    with_old = (
        states.select(_KEYS)
        .join(known.select([*KEYS, "version"]), _KEYS, join_type="left outer", use_threads=False)
        .sort_by([(name, "ascending") for name in KEYS])
    )
    versions = pc.add(pc.fill_null(with_old["version"], 0), 1)
    return pa.table([*states.columns, versions], schema=VERSIONED)


def _joined(rows: pa.Table, windows: pa.Table, how: str) -> pa.Table:
    found = rows.join(windows.select(_KEYS), _KEYS, join_type=how, use_threads=False)
    return found.select(rows.column_names).cast(rows.schema)
