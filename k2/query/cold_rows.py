"""Rows of few data files, read without a query engine.

A usual question ("100 trades of X before T") touches one or two files. Reading their key columns,
deciding in Arrow which rows are wanted, and decoding the other columns of only those row groups
takes a fifth of the processor time DuckDB needs to plan, scan and sort the same.

A column that has one value in each of the row groups, by their statistics, is not decoded: sorted
by symbol and time, they have one exchange, one currency and one log, which cost as much as a price.

Row groups are decoded by the thread that asked, or two where that pays: Arrow's own scan hands
pieces between its threads, for twice the processor time, which ingestion needs.

Files never change, so their footers are kept, those asked for last, up to a cap.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from k2.lake.reader import LakeFile
from k2.query.bounds import Bounds
from k2.query.data_file import Footer, RowGroup
from k2.query.database import local_path
from k2.query.execute import FileGoneError

log = structlog.get_logger(__name__)

#: More rows than this are DuckDB's: it reads them on all threads and can be interrupted.
MAX_ROWS: Final = 400_000
#: Columns of row groups in the footers that are kept; each takes 1.3 kB.
_KEPT_CHUNKS: Final = 100_000
#: Fewer rows to decode are done by one thread before a second has begun.
_SPLIT_ROWS: Final = 16_384
#: The second threads, of all tables: more than there are processors would only wait for each other.
_HELPERS: Final = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="k2-decode")
#: Files a question has open at most.
_MOST_OPEN: Final = 64

_Ints = npt.NDArray[np.int64]
#: By path: the files a question has open; one thread at a time uses each.
Opened = dict[str, pq.ParquetFile]


class Wanted(Protocol):
    """Which rows of files are asked for."""

    @property
    def columns(self) -> Sequence[str]:
        """Names of the columns `rows` looks at."""

    @property
    def bounds(self) -> Bounds:
        """No row beyond them is wanted."""

    def rows(self, keys: pa.Table) -> _Ints:
        """Places of the wanted rows among `keys`, rising."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What was looked at: `keys` of all `groups`; the wanted rows are at `places`, rising.

    `opened`: its files, for whoever takes rows of them next.
    """

    groups: tuple[RowGroup, ...]
    keys: pa.Table
    places: _Ints
    opened: Opened


class ColdRows:
    """Reads data files of one table. Thread-safe. `time_column`: of the table."""

    def __init__(
        self, columns: pa.Schema, time_column: str, *, kept_chunks: int = _KEPT_CHUNKS
    ) -> None:
        self.columns, self._time_column = columns, time_column
        self.nothing = columns.empty_table()
        self._footers: OrderedDict[str, Footer] = OrderedDict()
        self._most_chunks, self._chunks = kept_chunks, 0
        self._lock = threading.Lock()

    def takes(self, files: Iterable[LakeFile]) -> bool:
        """True when these files are few, local, and hold the columns as K2 writes them."""
        total = 0
        for file in files:
            total += file.rows
            if total > MAX_ROWS or not local_path(file.path).startswith("/"):
                return False
        return all(self._footer(file).plain for file in files)

    def groups(self, files: Iterable[LakeFile], wanted: Wanted) -> list[RowGroup]:
        """Those of files it `takes` that may have wanted rows.

        Raises `FileGoneError`, as all methods here.
        """
        found: list[RowGroup] = []
        for file in files:
            bounds = wanted.bounds.of_bucket(file.bucket)
            groups = self._footer(file).groups
            found += (one for one in groups if bounds.meet(one.symbols, one.times_us))
        return found

    def look(
        self, groups: Iterable[RowGroup], wanted: Wanted, opened: Opened | None = None
    ) -> Looked:
        """Which rows of some groups are wanted; only the columns `wanted` names are decoded.

        `opened`: by looks of the same question before.
        """
        ordered = tuple(sorted(groups, key=lambda one: (one.file.path, one.index)))
        opened = {} if opened is None else opened
        keys = self._columns([_Part(group) for group in ordered], wanted.columns, opened)
        return Looked(ordered, keys, wanted.rows(keys), opened)

    def take(self, looked: Looked, places: _Ints) -> pa.Table:
        """All columns of the rows at `places` (rising) of what was looked at."""
        if not len(places):
            return self.nothing
        sizes = np.array([group.rows for group in looked.groups])
        ends = np.cumsum(sizes)
        which = np.searchsorted(ends, places, side="right")
        used, first = np.unique(which, return_index=True)
        within = np.split(places - (ends - sizes)[which], first[1:])
        parts = [*map(_Part, (looked.groups[at] for at in used), within)]
        known = looked.keys.take(pa.array(places))
        others = [name for name in self.columns.names if name not in known.column_names]
        found = self._columns(parts, others, looked.opened)
        return self._together((known, found), self.columns.names)

    def read(self, files: Iterable[LakeFile], wanted: Wanted, names: Sequence[str]) -> pa.Table:
        """The wanted rows of `files`, only the columns `names`, which `wanted` has to name too."""
        looked = self.look(self.groups(files, wanted), wanted)
        rows, places = looked.keys.select(list(names)), looked.places
        if len(places) and places[-1] - places[0] + 1 == len(places):
            # Sorted by symbol and time, what is wanted of a symbol usually lies together.
            return rows.slice(int(places[0]), len(places))
        return rows.take(pa.array(places))

    def _columns(self, parts: Sequence[_Part], names: Sequence[str], opened: Opened) -> pa.Table:
        """The columns `names` of parts, which are ordered by file."""
        constants = self._constants([part.group for part in parts], names)
        left = [name for name in names if name not in constants.column_names]
        which = np.repeat(np.arange(len(parts)), [part.rows for part in parts])
        tables = [constants.take(pa.array(which))]
        if left:
            tables.append(self._decode(parts, left, opened))
        return self._together(tables, names)

    def _together(self, tables: Iterable[pa.Table], names: Sequence[str]) -> pa.Table:
        """The columns `names`, each from that of the tables that has it."""
        found = {name: table[name] for table in tables for name in table.column_names}
        schema = pa.schema([self.columns.field(name) for name in names])
        return pa.Table.from_arrays([found[name] for name in names], schema=schema)

    def _constants(self, groups: Sequence[RowGroup], names: Iterable[str]) -> pa.Table:
        """Of those of `names` that have one value in each of the groups: that value, by group."""
        known = [self._footer(group.file).constants(group.index) for group in groups]
        fields = [self.columns.field(name) for name in names if all(name in own for own in known)]
        columns = [pa.array([own[field.name] for own in known], field.type) for field in fields]
        return pa.Table.from_arrays(columns, schema=pa.schema(fields))

    def _decode(self, parts: Sequence[_Part], names: Sequence[str], opened: Opened) -> pa.Table:
        """The same, all of them decoded."""
        half = _half(parts)
        if half is None:
            return self._read(parts, names, opened)
        second = _HELPERS.submit(self._read, parts[half:], names, opened)
        try:
            first = self._read(parts[:half], names, opened)
            # When the helpers are busy with other questions, there is nothing to wait for.
            late = second.cancel()
            rest = self._read(parts[half:], names, opened) if late else second.result()
        finally:
            second.cancel()
            # An error of its own refers to this frame, and so to the open files: not for long.
            del second
        return pa.concat_tables([first, rest])

    def _read(self, parts: Sequence[_Part], names: Sequence[str], opened: Opened) -> pa.Table:
        tables = [self.nothing.select(list(names))]
        try:
            for file, own in itertools.groupby(parts, key=lambda part: part.group.file):
                tables.append(self._of_file(file, list(own), names, opened))
        except (OSError, pa.ArrowException) as exc:
            raise _gone(exc) from exc
        return pa.concat_tables(tables)

    def _of_file(
        self, file: LakeFile, parts: Sequence[_Part], names: Sequence[str], opened: Opened
    ) -> pa.Table:
        footer = self._footer(file)
        source = opened.get(file.path) or footer.open()
        if len(opened) < _MOST_OPEN:
            opened[file.path] = source
        rows = footer.rows(source, [part.group.index for part in parts], names)
        places, before = [], 0
        for part in parts:
            if part.places is not None:
                places.append(part.places + before)
            before += part.group.rows
        return rows.take(pa.array(np.concatenate(places))) if places else rows

    def _footer(self, file: LakeFile) -> Footer:
        with self._lock:
            known = self._footers.get(file.path)
            if known is not None:
                self._footers.move_to_end(file.path)
                return known
        try:
            read = Footer.read(file, self.columns, self._time_column)
        except (OSError, pa.ArrowException) as exc:
            raise _gone(exc) from exc
        with self._lock:
            if file.path not in self._footers:
                self._footers[file.path] = read
                self._chunks += read.chunks
            while self._chunks > self._most_chunks and len(self._footers) > 1:
                self._chunks -= self._footers.popitem(last=False)[1].chunks
        return read


class _Part(NamedTuple):
    """The rows at `places` (rising) of a row group; None: all."""

    group: RowGroup
    places: _Ints | None = None

    @property
    def rows(self) -> int:
        return self.group.rows if self.places is None else len(self.places)


def _half(parts: Sequence[_Part]) -> int | None:
    """Where the second half of the rows begins, a file's first; None: not worth a second thread."""
    total = sum(part.group.rows for part in parts)
    if total < _SPLIT_ROWS:
        return None
    before = 0
    for at, (group, _) in enumerate(parts):
        if before * 2 >= total and group.file != parts[at - 1].group.file:
            return at
        before += group.rows
    return None


def _gone(error: Exception) -> FileGoneError:
    log.warning("data_file_unreadable", error=str(error)[:500])
    return FileGoneError("a data file of the lake cannot be read; the log has the details")
