"""Rows of few data files, read without a query engine.

A usual question ("100 trades of X before T") touches one or two files. Reading their key columns,
deciding in Arrow which rows are wanted, and decoding the other columns of only those row groups
takes a fifth of the processor time DuckDB needs to plan, scan and sort the same.

Row groups of many files are decoded in one call: Arrow reads them in threads of its own, and who
asked waits for the interpreter, which the event loop may hold, only once.

Files never change, so their footers are kept, those asked for last, up to a cap.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds
import structlog
from pyarrow.fs import LocalFileSystem

from k2.lake.columns import FIELD_ID
from k2.lake.reader import LakeFile
from k2.query.database import local_path
from k2.query.execute import FileGoneError
from k2.times import micros

log = structlog.get_logger(__name__)

#: More rows than this are DuckDB's: it reads them on all threads and can be interrupted.
MAX_ROWS: Final = 400_000
#: Columns of row groups in the footers that are kept; each takes 1.3 kB.
_KEPT_CHUNKS: Final = 100_000
_FILES: Final = LocalFileSystem(use_mmap=True)
_FORMAT: Final = ds.ParquetFileFormat(
    # Reading ahead is for stores that are far away.
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(pre_buffer=False)
)

_Ints = npt.NDArray[np.int64]


class Wanted(Protocol):
    """Which rows of files are asked for."""

    @property
    def columns(self) -> Sequence[str]:
        """Names of the columns `rows` looks at."""

    def may_be_in(self, symbols: tuple[str, str] | None, times_us: tuple[int, int] | None) -> bool:
        """False when no row within these bounds (None: unknown) is wanted."""

    def rows(self, keys: pa.Table) -> _Ints:
        """Places of the wanted rows among `keys`, rising."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group of a file: how many rows, and what its statistics say of them."""

    file: LakeFile
    index: int
    rows: int
    symbols: tuple[str, str] | None
    times_us: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class _Footer:
    """`plain`: the file has our columns under our names, ids and types."""

    fragment: ds.ParquetFileFragment
    groups: tuple[RowGroup, ...]
    plain: bool
    chunks: int


@dataclass(frozen=True, slots=True)
class Looked:
    """What was looked at: `keys` of all `groups`; the wanted rows are at `places`, rising."""

    groups: tuple[RowGroup, ...]
    keys: pa.Table
    places: _Ints


class ColdRows:
    """Reads data files of one table. Thread-safe. `time_column`: of the table."""

    def __init__(
        self, columns: pa.Schema, time_column: str, *, kept_chunks: int = _KEPT_CHUNKS
    ) -> None:
        self.columns, self._time_column = columns, time_column
        self.nothing = columns.empty_table()
        self._footers: OrderedDict[str, _Footer] = OrderedDict()
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
        return [
            one
            for file in files
            for one in self._footer(file).groups
            if wanted.may_be_in(one.symbols, one.times_us)
        ]

    def look(self, groups: Iterable[RowGroup], wanted: Wanted) -> Looked:
        """Which rows of some groups are wanted; only the columns `wanted` names are decoded."""
        ordered = tuple(sorted(groups, key=lambda one: (one.file.path, one.index)))
        keys = self._decode(ordered, wanted.columns)
        return Looked(ordered, keys, wanted.rows(keys))

    def take(self, looked: Looked, places: _Ints) -> pa.Table:
        """All columns of the rows at `places` (rising) of what was looked at."""
        if not len(places):
            return self.nothing
        sizes = np.array([group.rows for group in looked.groups])
        which = np.searchsorted(np.cumsum(sizes), places, side="right")
        used = np.unique(which)
        # Only groups with such rows are decoded, so the rows of the others before them are no more.
        sizes[used] = 0
        left_out = np.cumsum(sizes)
        rows = self._decode([looked.groups[at] for at in used], self.columns.names)
        return rows.take(pa.array(places - left_out[which]))

    def read(self, files: Iterable[LakeFile], wanted: Wanted, names: Sequence[str]) -> pa.Table:
        """The wanted rows of `files`, only the columns `names`, which `wanted` has to name too."""
        looked = self.look(self.groups(files, wanted), wanted)
        rows, places = looked.keys.select(list(names)), looked.places
        if len(places) and places[-1] - places[0] + 1 == len(places):
            # Sorted by symbol and time, what is wanted of a symbol usually lies together.
            return rows.slice(int(places[0]), len(places))
        return rows.take(pa.array(places))

    def _decode(self, groups: Sequence[RowGroup], names: Sequence[str]) -> pa.Table:
        """The columns `names` of all rows of row groups, in their order."""
        if not groups:
            return self.nothing.select(list(names))
        schema = pa.schema([self.columns.field(name) for name in names])
        pieces = [
            self._footer(file).fragment.subset(row_group_ids=[one.index for one in own])
            for file, own in itertools.groupby(groups, key=lambda one: one.file)
        ]
        try:
            return ds.FileSystemDataset(pieces, schema, _FORMAT, _FILES).to_table()
        except (OSError, pa.ArrowException) as exc:
            raise _gone(exc) from exc

    def _footer(self, file: LakeFile) -> _Footer:
        with self._lock:
            known = self._footers.get(file.path)
            if known is not None:
                self._footers.move_to_end(file.path)
                return known
        try:
            fragment = _FORMAT.make_fragment(local_path(file.path), _FILES)
            metadata = fragment.metadata
        except (OSError, pa.ArrowException) as exc:
            raise _gone(exc) from exc
        plain = self._is_plain(fragment.physical_schema)
        groups = tuple(self._groups(file, metadata)) if plain else ()
        read = _Footer(fragment, groups, plain, metadata.num_row_groups * metadata.num_columns)
        with self._lock:
            if file.path not in self._footers:
                self._footers[file.path] = read
                self._chunks += read.chunks
            while self._chunks > self._most_chunks and len(self._footers) > 1:
                self._chunks -= self._footers.popitem(last=False)[1].chunks
        return read

    def _is_plain(self, schema: pa.Schema) -> bool:
        found = {field.name: field for field in schema}
        return all(
            (other := found.get(ours.name)) is not None
            and other.type == ours.type
            and _field_id(other) == _field_id(ours)
            for ours in self.columns
        )

    def _groups(self, file: LakeFile, metadata: Any) -> Iterable[RowGroup]:
        places = {metadata.schema.column(at).path: at for at in range(metadata.num_columns)}
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            symbols = _ends(group, places.get("symbol"))
            times = _ends(group, places.get(self._time_column))
            times_us = None if times is None else (micros(times[0]), micros(times[1]))
            yield RowGroup(file, index, group.num_rows, symbols, times_us)


def _ends(group: Any, column: int | None) -> tuple[Any, Any] | None:
    statistics = None if column is None else group.column(column).statistics
    if statistics is None or not statistics.has_min_max:
        return None
    return statistics.min, statistics.max


def _field_id(field: pa.Field) -> bytes | None:
    return (field.metadata or {}).get(FIELD_ID)


def _gone(error: Exception) -> FileGoneError:
    log.warning("data_file_unreadable", error=str(error)[:500])
    return FileGoneError("a data file of the lake cannot be read; the log has the details")
