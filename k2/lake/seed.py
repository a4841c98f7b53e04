"""What the lake already knows: the ids stored by earlier incarnations of a log.

On a new epoch continuity starts from these, so that a capture replayed into the same lake adds
nothing. Rows of the epoch itself are left out, as its own checkpoint knows them better, or count up
to an offset, for symbols that continuity has let go. Where an exchange started its ids over, the
ids before and after are told apart by time, as continuity does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.table import StaticTable

from k2.errors import LakeError
from k2.lake.reader import LakeFile, LakeReader, Pinned
from k2.lake.tables import TRADES
from k2.pipeline.continuity import RESET_AFTER_US
from k2.pipeline.text_ids import scoped, start_us_of, symbol_of
from k2.records import ID_COLUMN

_Ints = npt.NDArray[np.int64]
_READ = ("symbol", "timestamp")
#: Read only where a file's bounds do not say that all rows have the same.
_PLACE = ("log_epoch", "platform_sequence")


@dataclass(frozen=True, slots=True)
class Seed:
    """One symbol's stored ids: inclusive islands, rising and apart, and the highest id.

    `starts`, `ends`: int64 of equal length. `last_timestamp_us`: exchange time of `last_id`'s row,
    the latest where an id occurs more than once. `older`: the ids from before the exchange started
    over, one seed for each time it did, oldest first.
    """

    starts: _Ints
    ends: _Ints
    last_id: int
    last_timestamp_us: int
    older: tuple[Seed, ...] = ()

    def __len__(self) -> int:
        return len(self.starts)


class Known(NamedTuple):
    """Which rows count: those of epochs other than `epoch`, and its own below `own_before`."""

    epoch: str
    own_before: int = -1

    def may_be_in(self, file: LakeFile) -> bool:
        """False when no row of the file counts."""
        if not _only(file.epochs, self.epoch):
            return True
        return file.sequences is None or file.sequences[0] < self.own_before

    def all_of(self, file: LakeFile) -> bool:
        """True when every row of the file counts, as its bounds have it."""
        return file.epochs is not None and not _within(file.epochs, self.epoch)

    def mask(self, rows: pa.Table) -> pa.ChunkedArray:
        """Which of `rows` count."""
        return pc.or_(
            pc.not_equal(rows["log_epoch"], self.epoch),
            pc.less(rows["platform_sequence"], self.own_before),
        )


class _Era(NamedTuple):
    """Ids of a stretch of exchange time without a pause in which they might have started over."""

    first_us: int
    last_us: int
    first_id: int
    ids: Seed


class LakeSeeds:
    """Reads seeds out of a pinned snapshot; blocking, so call it in a thread."""

    def __init__(self, reader: LakeReader, pinned: Pinned) -> None:
        if pinned.table.name not in ID_COLUMN:
            raise LakeError(
                f"table {pinned.table} has no exchange ids; allowed: {', '.join(ID_COLUMN)}"
            )
        self._reader = reader
        self._pinned = pinned
        self._id_column = ID_COLUMN[pinned.table.name]

    def seed_intervals(
        self, exchange: str, symbols: Iterable[str], known: Known, start_us: int | None = None
    ) -> dict[str, Seed]:
        """Ids stored by rows that count, per symbol; absent when there are none.

        Integer ids only: other ids have no order. `start_us` bounds how far back rows are read.
        Raises `LakeError` when a file of the snapshot cannot be read.
        """
        wanted = set(symbols)
        eras: dict[str, list[_Era]] = {}
        for rows in self._rows(wanted, exchange, known, start_us):
            for symbol, ids, times in _by_symbol(rows, self._id_column):
                eras.setdefault(symbol, []).extend(_eras(ids, times))
        return {symbol: _generations(found) for symbol, found in sorted(eras.items())}

    def seed_scopes(self, exchange: str, scopes: Iterable[str], known: Known) -> dict[str, Seed]:
        """Likewise the ids that are no numbers, by scope (`k2.pipeline.text_ids`)."""
        wanted = set(scopes)
        symbols = {symbol_of(scope) for scope in wanted}
        starts = [start_us_of(scope) for scope in wanted]
        start_us = None if None in starts else min(s for s in starts if s is not None)
        parts: dict[str, list[Seed]] = {}
        for rows in self._rows(symbols, exchange, known, start_us):
            for scope, ids, times in _by_scope(rows, self._pinned.table.name, self._id_column):
                if scope in wanted:
                    parts.setdefault(scope, []).append(_islands(ids, ids, times))
        return {scope: _merged(seeds) for scope, seeds in parts.items()}

    def has_other_epochs(self, epoch: str, topic: str) -> bool:
        """True when the table has rows of the log `topic` from another incarnation of it."""
        for file in self._reader.files(self._pinned):
            if _only(file.epochs, epoch) or not _within(file.topics, topic):
                continue
            if _only(file.topics, topic):
                # Bounds are values that occur, and one of them is not this epoch.
                return True
            table = self._read(file, ["log_epoch", "log_topic"])
            match = pc.and_(
                pc.equal(table["log_topic"], topic), pc.not_equal(table["log_epoch"], epoch)
            )
            if pc.any(match).as_py():
                return True
        return False

    def _rows(
        self, symbols: set[str], exchange: str, known: Known, start_us: int | None
    ) -> Iterator[pa.Table]:
        columns = [*_READ, self._id_column]
        every = [*columns, "exchange", *_PLACE]
        chosen = pa.array(sorted(symbols), pa.string())
        if self._reader.has_deletes(self._pinned):
            tables: Iterator[pa.Table] = iter([self._scan(every)])
        else:
            tables = (
                self._read(file, [*columns, *_doubtful(file, exchange, known)])
                for file in self._reader.files_for(self._pinned, symbols, start_us)
                if known.may_be_in(file) and _within(file.exchanges, exchange)
            )
        for table in tables:
            match = pc.is_in(table["symbol"], value_set=chosen)
            if "exchange" in table.column_names:
                match = pc.and_(match, pc.equal(table["exchange"], exchange))
            if "log_epoch" in table.column_names:
                match = pc.and_(match, known.mask(table))
            yield table.select(columns).filter(match)
        yield from self._cancelled(exchange, symbols, known, every)

    def _cancelled(
        self, exchange: str, symbols: set[str], known: Known, columns: list[str]
    ) -> Iterator[pa.Table]:
        """Trades that were taken out by hand: their ids stay known."""
        if self._pinned.table.name == TRADES.name:
            found = self._reader.cancelled(exchange, symbols, columns)
            if found is not None:
                yield found.filter(known.mask(found))

    def _read(self, file: LakeFile, columns: list[str]) -> pa.Table:
        try:
            with self._pinned.io.new_input(file.path).open() as stream:
                return pq.read_table(stream, columns=columns, use_threads=False, pre_buffer=False)
        except (OSError, pa.ArrowException) as exc:
            raise LakeError(
                f"data file {file.path} of {self._pinned.table} cannot be read: {exc}; restore it "
                "or roll the table back to a snapshot without it",
                path=file.path,
            ) from exc

    def _scan(self, columns: list[str]) -> pa.Table:
        """All rows through PyIceberg, which applies delete files; K2 itself never writes any."""
        table = StaticTable.from_metadata(
            self._pinned.metadata_location, self._pinned.io.properties
        )
        scan = table.scan(selected_fields=tuple(columns), snapshot_id=self._pinned.snapshot_id)
        found = scan.to_arrow()
        return found.cast(
            pa.schema([self._pinned.table.arrow_schema.field(name) for name in found.column_names])
        )


def _only(bounds: tuple[str, str] | None, value: str) -> bool:
    return bounds == (value, value)


def _within(bounds: tuple[str, str] | None, value: str) -> bool:
    return bounds is None or bounds[0] <= value <= bounds[1]


def _doubtful(file: LakeFile, exchange: str, known: Known) -> list[str]:
    """Columns that tell which rows of `file` count, as far as its bounds leave that open."""
    columns = [] if _only(file.exchanges, exchange) else ["exchange"]
    return columns if known.all_of(file) else [*columns, *_PLACE]


def _by_symbol(rows: pa.Table, id_column: str) -> Iterator[tuple[str, _Ints, _Ints]]:
    """(symbol, ids, times in µs) of the rows whose id is an integer."""
    digits = pc.match_substring_regex(rows[id_column], r"^[0-9]{1,18}$")
    rows = rows.filter(digits)
    if rows.num_rows == 0:
        return
    encoded = rows["symbol"].combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    ids = rows[id_column].cast(pa.int64()).to_numpy()
    times = rows["timestamp"].cast(pa.int64()).to_numpy()
    for code, symbol in enumerate(encoded.dictionary.to_pylist()):
        mine = codes == code
        yield symbol, ids[mine], times[mine]


def _by_scope(rows: pa.Table, kind: str, id_column: str) -> Iterator[tuple[str, _Ints, _Ints]]:
    """(scope, ids, times in µs) of the rows whose id is no integer."""
    digits = pc.match_substring_regex(rows[id_column], r"^[0-9]{1,18}$")
    rows = rows.filter(pc.invert(digits))
    if rows.num_rows == 0:
        return
    symbols, texts = (pa.concat_arrays(rows[name].chunks) for name in ("symbol", id_column))
    times = rows["timestamp"].cast(pa.int64()).to_numpy()
    scopes, ids, known = scoped(kind, symbols, texts, times)
    encoded = scopes.dictionary_encode()
    codes = np.where(known, encoded.indices.to_numpy(), -1)
    for code, scope in enumerate(encoded.dictionary.to_pylist()):
        mine = codes == code
        if mine.any():
            yield scope, ids[mine], times[mine]


def _islands(starts: _Ints, ends: _Ints, times: _Ints) -> Seed:
    """Union of inclusive ranges; `times` belong to `ends`."""
    last_id = int(ends.max())
    last_timestamp_us = int(times[ends == last_id].max())
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    # A range opens an island when it neither touches nor overlaps all before it.
    opens = np.concatenate(([True], starts[1:] > ends[:-1] + 1))
    closes = np.concatenate((opens[1:], [True]))
    return Seed(starts[opens], ends[closes], last_id, last_timestamp_us)


def _merged(seeds: list[Seed]) -> Seed:
    starts = np.concatenate([seed.starts for seed in seeds])
    ends = np.concatenate([seed.ends for seed in seeds])
    # Only the last range of each part can hold the highest id, so only its time counts.
    times = np.concatenate(
        [np.where(seed.ends == seed.last_id, seed.last_timestamp_us, 0) for seed in seeds]
    )
    return _islands(starts, ends, times.astype(np.int64))


def _eras(ids: _Ints, times: _Ints) -> Iterator[_Era]:
    """Cut where exchange time pauses for so long that ids may start over after it."""
    if int(times.max() - times.min()) > RESET_AFTER_US:
        order = np.argsort(times, kind="stable")
        ids, times = ids[order], times[order]
        cuts = np.flatnonzero(np.diff(times) > RESET_AFTER_US) + 1
        parts = zip(np.split(ids, cuts), np.split(times, cuts), strict=True)
    else:
        parts = zip([ids], [times], strict=True)
    for mine, at in parts:
        first = int(mine[int(at.argmin())])
        yield _Era(int(at.min()), int(at.max()), first, _islands(mine, mine, at))


def _generations(eras: list[_Era]) -> Seed:
    """Eras of several files as one seed; a fall of ids after a pause begins a generation."""
    generations: list[list[Seed]] = []
    high, last_us = -1, 0
    for era in sorted(eras, key=lambda era: era.first_us):
        paused = era.first_us > last_us + RESET_AFTER_US
        if not generations or (paused and era.first_id < high // 2):
            generations.append([])
            high = -1
        generations[-1].append(era.ids)
        high, last_us = max(high, era.ids.last_id), max(last_us, era.last_us)
    *older, newest = (_merged(seeds) for seeds in generations)
    return replace(newest, older=tuple(older))
