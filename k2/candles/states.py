"""What the lake has of windows: looked up once, then remembered for as long as it cannot change."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from k2.candles.fold import KEYS
from k2.candles.versions import VERSIONED, newest, not_of, of_windows
from k2.errors import LakeError
from k2.lake.reader import LakeFile, LakeReader, Pinned
from k2.lake.tables import CANDLES
from k2.lake.writer import Basis

#: Windows remembered: those of the last commits, so that nothing is read in normal work.
_MOST: Final = 50_000


@dataclass(slots=True)
class CandleStates:
    """The newest versions of windows, and what they were read from. For one thread at a time."""

    reader: LakeReader
    most: int = _MOST
    _held: pa.Table = field(default_factory=VERSIONED.empty_table)
    _basis: Basis | None = None

    def of(self, windows: pa.Table, partitions: frozenset[int]) -> tuple[pa.Table, Basis]:
        """The newest versions of `windows` that exist, and the basis a commit must name.

        `partitions`: those of the log that bring the windows' trades. Raises `LakeError`.
        """
        pinned = self.reader.current(CANDLES)
        if self._basis is None or not self._basis.holds(pinned.metadata):
            self.forget()
        held = partitions if self._basis is None else self._basis.partitions | partitions
        self._basis = Basis(pinned.snapshot_id, pinned.vector, held)
        known = of_windows(self._held, windows)
        missing = not_of(windows.select(list(KEYS)), known)
        found = look_up(self.reader, pinned, missing)
        return pa.concat_tables([known, found]), self._basis

    def stored(self, versions: pa.Table, basis: Basis) -> None:
        """`versions` are in the table now, and `basis` says as of when."""
        others = not_of(self._held, versions)
        # The newest last: what has not been touched for long leaves.
        kept = others.slice(max(0, others.num_rows + versions.num_rows - self.most))
        self._held = pa.concat_tables([kept, versions]).combine_chunks()
        self._basis = basis

    def forget(self) -> None:
        self._held, self._basis = VERSIONED.empty_table(), None


def look_up(reader: LakeReader, pinned: Pinned, windows: pa.Table) -> pa.Table:
    """The newest versions of `windows` in a snapshot; only files that may have them are read."""
    if not windows.num_rows or pinned.snapshot_id is None:
        return VERSIONED.empty_table()
    starts = sorted(set(windows["window_start"].cast(pa.int64()).to_pylist()))
    symbols = set(windows["symbol"].to_pylist())
    files = [
        file
        for file in reader.files_for(pinned, symbols, starts[0], starts[-1] + 1)
        if _has_one(file, starts)
    ]
    wanted = pa.array(sorted(symbols), pa.string())
    found = []
    for file in files:
        rows = read_versions(pinned, file)
        found.append(of_windows(rows.filter(pc.is_in(rows["symbol"], wanted)), windows))
    return newest(pa.concat_tables([VERSIONED.empty_table(), *found]))


def read_versions(pinned: Pinned, file: LakeFile) -> pa.Table:
    """All candles of a data file. Raises `LakeError` when it cannot be read."""
    return read_columns(pinned, file, VERSIONED.names).cast(VERSIONED)


def read_columns(pinned: Pinned, file: LakeFile, columns: Sequence[str]) -> pa.Table:
    """Columns of one data file. Raises `LakeError` when it cannot be read."""
    try:
        with pinned.io.new_input(file.path).open() as stream:
            found = pq.read_table(stream, columns=list(columns), use_threads=False)
    except (OSError, pa.ArrowException) as exc:
        raise LakeError(
            f"data file {file.path} of {pinned.table} cannot be read: {exc}; restore it, or roll "
            "the table back to a snapshot without it",
            path=file.path,
        ) from exc
    return found.select(list(columns))


def _has_one(file: LakeFile, starts: Sequence[int]) -> bool:
    """True when one of the sorted `starts` is within the file's bounds."""
    if file.times_us is None:
        return True
    low, high = file.times_us
    at = bisect.bisect_left(starts, low)
    return at < len(starts) and starts[at] <= high
