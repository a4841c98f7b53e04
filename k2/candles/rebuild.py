"""Candles again from the trades of the lake: what they must be, against what they are.

Windows never cross a day, so a day is worked off after the other. Trades and candles are stored at
different moments: of the trades only those count which the candles' own vector covers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.table.snapshots import Operation

from k2.candles.fold import KEYS, STATE, TRADE_COLUMNS, merge, of_trades, roll_up
from k2.candles.states import read_columns, read_versions
from k2.candles.versions import VERSIONED, lake_rows, newest, not_of, of_windows, replaced
from k2.errors import LakeError
from k2.lake.reader import LakeReader, Pinned
from k2.lake.tables import CANDLES, TRADES
from k2.lake.vector import Place, Position
from k2.lake.writer import Basis, CommitResult, LakeWriter
from k2.times import DAY_US

_PLACE: Final = ["log_epoch", "log_topic", "log_partition"]
_SHOWN: Final = 20
_TRIES: Final = 40
_LOOK_S: Final = 0.5


@dataclass(slots=True)
class Report:
    """What a comparison found. `behind`: trades of the lake that are not in candles yet.
    `outlived`: windows of days whose trades are not kept any more, which cannot be compared.

    `different`: windows that are not what their trades make them; `examples`: the first of them,
    each with the values in the lake and the right ones. `corrections`: their next versions.
    """

    trades: int = 0
    behind: int = 0
    windows: int = 0
    different: int = 0
    outlived: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)
    corrections: list[pa.Table] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Pair:
    """Snapshots of candles and trades; the trades reach at least as far.

    `through`: per place of the log of record, the last offset that is in the candles. `added`:
    places whose trades the candles have nothing of yet, with the positions of the trades table.
    """

    candles: Pinned
    trades: Pinned
    through: Mapping[tuple[str, str, int], int]
    added: Mapping[Place, Position]


def pair(
    reader: LakeReader, wait: Callable[[float], object] = time.sleep, tries: int = _TRIES
) -> Pair:
    """Pin both tables; looks again while the trades are not as far as the candles.

    Raises `LakeError` when they do not catch up, or while records put off are on their way.
    """
    for attempt in range(tries):
        candles, trades = reader.current(CANDLES), reader.current(TRADES)
        late = _late(candles, trades)
        if late is None:
            break
        if attempt + 1 < tries:
            wait(_LOOK_S)
    else:
        raise LakeError(
            f"trades and candles do not meet at {late}: one of them has not stored what the other "
            "has; run it again, or while no worker runs",
            place=late,
        )
    have, all_ = candles.vector.entries, trades.vector.entries
    through = {
        (at.epoch, at.topic.removesuffix(".validated"), at.partition): position.sequence
        for at, position in have.items()
        if at.topic.endswith(".validated")
    }
    return Pair(candles, trades, through, {p: at for p, at in all_.items() if p not in have})


@dataclass(frozen=True, slots=True)
class Only:
    """Symbols and days whose trades are known to be kept, if there are any left."""

    symbols: frozenset[str]
    days: frozenset[int]

    @classmethod
    def of(cls, trades: pa.Table) -> Self:
        """Those of trades of the lake."""
        days = trades["timestamp"].cast(pa.int64()).to_numpy() // DAY_US
        return cls(frozenset(trades["symbol"].to_pylist()), frozenset(days.tolist()))


def compare(
    reader: LakeReader,
    found: Pair,
    exclude: frozenset[str],
    *,
    add: bool = False,
    only: Only | None = None,
) -> Report:
    """Recompute every day, or `only` some of it.

    `add`: also what the candles have nothing of yet counts as missing.
    """
    report = Report()
    symbols = None if only is None else set(only.symbols)
    for start_us in _days(reader, found):
        if only is not None and start_us // DAY_US not in only.days:
            continue
        rows = [
            read_versions(found.candles, file)
            for file in reader.files_for(found.candles, symbols, start_us, start_us + DAY_US)
        ]
        known = newest(pa.concat_tables([VERSIONED.empty_table(), *rows]))
        known = known.filter(_within(known, "window_start", start_us, symbols))
        kept = reader.files_for(found.trades, None, start_us, start_us + DAY_US)
        if only is None and not kept:
            report.outlived += known.num_rows
            continue
        right = _recomputed(reader, found, start_us, symbols, exclude, add, report)
        _note(report, known, right)
    return report


def write(writer: LakeWriter, found: Pair, report: Report, now_us: int) -> CommitResult | None:
    """Store the corrections, and with them the positions of what was added; None: nothing to do.

    Raises `StaleBasisError` when a worker has stored candles since they were read.
    """
    if not report.corrections and not found.added:
        return None
    versions = pa.concat_tables([VERSIONED.empty_table(), *report.corrections])
    entries = found.candles.vector.entries
    partitions = frozenset(place.partition for place in (*entries, *found.added))
    return writer.commit(
        lake_rows(versions, now_us) if versions.num_rows else None,
        dict.fromkeys(found.added),
        found.added,
        basis=Basis(found.candles.snapshot_id, found.candles.vector, partitions),
        operation=Operation.OVERWRITE,
    )


def _late(candles: Pinned, trades: Pinned) -> Place | None:
    """A place at which the trades are not as far, or whose put-off records are on their way."""
    for place, position in candles.vector.entries.items():
        stored = trades.vector.get(place)
        if stored is None or stored.sequence < position.sequence:
            return place
    for place, stored in trades.vector.entries.items():
        if place.topic.endswith(".deferred"):
            known = candles.vector.get(place)
            home = Place(
                place.epoch, place.topic.replace(".deferred", ".validated"), place.partition
            )
            behind = known is None or known.sequence < stored.sequence
            if behind and candles.vector.get(home) is not None:
                return place
    return None


def _days(reader: LakeReader, found: Pair) -> list[int]:
    """First moments of the days of either table, µs."""
    days: set[int] = set()
    for pinned in (found.candles, found.trades):
        for file in reader.files(pinned):
            if file.times_us is None:
                raise LakeError(
                    f"data file {file.path} of {pinned.table} has no bounds; rewrite it with "
                    "`k2 lake compact`",
                    path=file.path,
                )
            low, high = file.times_us
            days |= set(range(low // DAY_US, high // DAY_US + 1))
    return [day * DAY_US for day in sorted(days)]


def _recomputed(
    reader: LakeReader,
    found: Pair,
    start_us: int,
    symbols: set[str] | None,
    exclude: frozenset[str],
    add: bool,
    report: Report,
) -> pa.Table:
    minutes = STATE.empty_table()
    columns = [*TRADE_COLUMNS, *_PLACE]
    for file in reader.files_for(found.trades, symbols, start_us, start_us + DAY_US):
        rows = read_columns(found.trades, file, columns)
        rows = rows.filter(_within(rows, "timestamp", start_us, symbols))
        for part, through in _by_place(rows, found.through):
            if through is None and add:
                mine = part
            else:
                last = -1 if through is None else through
                mine = part.filter(pc.less_equal(part["platform_sequence"], last))
            report.trades += mine.num_rows
            report.behind += part.num_rows - mine.num_rows
            minutes = merge([minutes, of_trades(mine, exclude)])
    return roll_up(minutes)


def _by_place(
    rows: pa.Table, through: Mapping[tuple[str, str, int], int]
) -> Iterator[tuple[pa.Table, int | None]]:
    """The rows of each place of the log of record, and how far the candles have it."""
    for place in rows.select(_PLACE).group_by(_PLACE).aggregate([]).to_pylist():
        mask = pc.field("log_epoch") == place["log_epoch"]
        for name in _PLACE[1:]:
            mask &= pc.field(name) == place[name]
        key = (place["log_epoch"], place["log_topic"], place["log_partition"])
        yield rows.filter(mask), through.get(key)


def _within(
    rows: pa.Table, time_column: str, start_us: int, symbols: set[str] | None
) -> pa.ChunkedArray | pa.Array:
    """Which rows are of the day, and of `symbols` if given."""
    us = rows[time_column].cast(pa.int64()).to_numpy()
    of_day = pa.array((us >= start_us) & (us < start_us + DAY_US))
    if symbols is None:
        return of_day
    wanted = pa.array(sorted(symbols), pa.string())
    return pc.and_(of_day, pc.is_in(rows["symbol"], value_set=wanted))


def _note(report: Report, known: pa.Table, right: pa.Table) -> None:
    """Count a day's windows and keep what is not as it must be."""
    alive = known.filter(pc.field("trade_count") > 0).select(STATE.names)
    report.windows += right.num_rows
    wrong = _not_in(right, alive)
    surplus = not_of(alive, right)
    report.different += wrong.num_rows + surplus.num_rows
    if not wrong.num_rows and not surplus.num_rows:
        return
    touched = pa.concat_tables([wrong, surplus])
    had = of_windows(known, touched)
    report.corrections.append(replaced(had, wrong))
    _show(report, touched, had, wrong)


def _show(report: Report, touched: pa.Table, had: pa.Table, right: pa.Table) -> None:
    in_lake, must_be = _by_key(had), _by_key(right)
    for row in touched.select(list(KEYS)).to_pylist()[: _SHOWN - len(report.examples)]:
        key = tuple(row.values())
        lake, wanted = in_lake.get(key, {}), must_be.get(key, {})
        values = {
            name: [lake.get(name), wanted.get(name)]
            for name in STATE.names
            if name not in KEYS and lake.get(name) != wanted.get(name)
        }
        report.examples.append({**row, "lake_and_right": values})


def _by_key(rows: pa.Table) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {tuple(row[name] for name in KEYS): row for row in rows.to_pylist()}


def _not_in(rows: pa.Table, others: pa.Table) -> pa.Table:
    """The rows that are not, value for value, among `others`; both have unique keys, sorted."""
    index = np.arange(rows.num_rows)
    mine = _comparable(rows).append_column("row", pa.array(index))
    left = mine.join(_comparable(others), STATE.names, join_type="left anti", use_threads=False)
    return rows.take(left["row"].sort())


def _comparable(rows: pa.Table) -> pa.Table:
    """A join never finds null equal to null."""
    at = rows.column_names.index("notional")
    return rows.set_column(at, "notional", pc.fill_null(rows["notional"], -1))
