"""Rows of few data files, read without a query engine.

A usual question ("100 trades of X before T") touches one or two files. Reading their key columns,
deciding in Arrow which rows are wanted, and decoding the other columns of only those row groups
takes a fifth of the processor time DuckDB needs to plan, scan and sort the same.

Files never change, so footers and the row groups asked for last are kept, up to a byte cap.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog

from k2.lake.columns import FIELD_ID
from k2.lake.reader import LakeFile
from k2.query.database import local_path
from k2.query.execute import FileGoneError

log = structlog.get_logger(__name__)

#: More rows than this are DuckDB's: it reads them on all threads and can be interrupted.
MAX_ROWS: Final = 400_000
_CACHE_BYTES: Final = 128 * 1024 * 1024
_FOOTERS: Final = 4_096

_Ints = npt.NDArray[np.int64]


class Wanted(Protocol):
    """Which rows of a file are asked for."""

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

    metadata: pq.FileMetaData
    groups: tuple[RowGroup, ...]
    plain: bool


@dataclass(frozen=True, slots=True)
class Looked:
    """What was looked at of a file: `keys` of its `groups`; the wanted rows are at `places`."""

    groups: tuple[RowGroup, ...]
    keys: pa.Table
    places: _Ints


class ColdRows:
    """Reads data files of one table. Thread-safe. `time_column`: of the table."""

    def __init__(
        self, columns: pa.Schema, time_column: str, *, cache_bytes: int = _CACHE_BYTES
    ) -> None:
        self.columns, self._time_column = columns, time_column
        self._cache_bytes = cache_bytes
        self._footers: OrderedDict[str, _Footer] = OrderedDict()
        self._decoded: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def takes(self, files: Iterable[LakeFile]) -> bool:
        """True when these files are few, local, and hold the columns as K2 writes them."""
        total = 0
        for file in files:
            total += file.rows
            if total > MAX_ROWS or not local_path(file.path).startswith("/"):
                return False
        return all(self._footer(file).plain for file in files)

    def groups(self, file: LakeFile, wanted: Wanted) -> list[RowGroup]:
        """Those that may have wanted rows. Raises `FileGoneError`, as all methods here."""
        every = self._footer(file).groups
        return [one for one in every if wanted.may_be_in(one.symbols, one.times_us)]

    def look(self, groups: Sequence[RowGroup], wanted: Wanted) -> Looked:
        """Which rows of some groups of one file are wanted.

        Only the columns `wanted` names are decoded.
        """
        keys = self._keys(groups, wanted.columns)
        return Looked(tuple(groups), keys, wanted.rows(keys))

    def take(self, looked: Looked, places: _Ints) -> pa.Table:
        """All columns of the rows at `places` (rising) of what was looked at."""
        chosen: list[tuple[RowGroup, pa.Array]] = []
        first = 0
        for group in looked.groups:
            low, high = np.searchsorted(places, (first, first + group.rows))
            if high > low:
                chosen.append((group, pa.array(places[low:high] - first)))
            first += group.rows
        whole = self._whole([group for group, _ in chosen])
        found = [rows.take(at) for rows, (_, at) in zip(whole, chosen, strict=True)]
        return pa.concat_tables([self.columns.empty_table(), *found])

    def read(self, file: LakeFile, wanted: Wanted, names: Sequence[str]) -> pa.Table:
        """The wanted rows of `file`, only the columns `names`, which `wanted` has to name too."""
        looked = self.look(self.groups(file, wanted), wanted)
        rows, places = looked.keys.select(list(names)), looked.places
        if len(places) and places[-1] - places[0] + 1 == len(places):
            # Sorted by symbol and time, what is wanted of a symbol usually lies together.
            return rows.slice(int(places[0]), len(places))
        return rows.take(pa.array(places))

    def _keys(self, groups: Sequence[RowGroup], names: Sequence[str]) -> pa.Table:
        if not groups:
            return self.columns.empty_table().select(list(names))
        with self._lock:
            known = [self._decoded.get((one.file.path, one.index)) for one in groups]
        held = [table.select(list(names)) for table in known if table is not None]
        if len(held) == len(groups):
            return pa.concat_tables(held)
        return self._decode(groups[0].file, [[one.index for one in groups]], names)[0]

    def _whole(self, groups: Sequence[RowGroup]) -> list[pa.Table]:
        """All columns of row groups of one file; the ones asked for last are kept."""
        found: dict[int, pa.Table] = {}
        with self._lock:
            for group in groups:
                known = self._decoded.get((group.file.path, group.index))
                if known is not None:
                    self._decoded.move_to_end((group.file.path, group.index))
                    found[group.index] = known
        missing = [group for group in groups if group.index not in found]
        if missing:
            # One by one: slices of one large piece would all hold on to the whole.
            each = [[group.index] for group in missing]
            decoded = self._decode(missing[0].file, each, self.columns.names)
            for group, rows in zip(missing, decoded, strict=True):
                found[group.index] = rows
                self._keep((group.file.path, group.index), rows)
        return [found[group.index] for group in groups]

    def _keep(self, key: tuple[str, int], rows: pa.Table) -> None:
        # Adding up what slices hold takes longer than the memory they are slices of.
        size = rows.get_total_buffer_size()
        with self._lock:
            if key in self._decoded or size > self._cache_bytes // 4:
                return
            self._decoded[key] = rows
            self._held += size
            while self._held > self._cache_bytes:
                self._held -= self._decoded.popitem(last=False)[1].get_total_buffer_size()

    def _decode(
        self, file: LakeFile, parts: Sequence[list[int]], names: Sequence[str]
    ) -> list[pa.Table]:
        """The columns `names` of the row groups of each part."""
        chosen = list(names)
        wanted = pa.schema([self.columns.field(name) for name in chosen])
        try:
            with pq.ParquetFile(
                local_path(file.path),
                metadata=self._footer(file).metadata,
                memory_map=True,
                # Reading ahead in other threads is for stores that are far away.
                pre_buffer=False,
            ) as parquet:
                found = [
                    parquet.read_row_groups(part, columns=chosen, use_threads=False)
                    for part in parts
                ]
        except (OSError, pa.ArrowException) as exc:
            raise _gone(file) from exc
        # The types are ours (`_is_plain`); only the fields' metadata may be written otherwise.
        return [
            pa.Table.from_arrays([rows[name] for name in chosen], schema=wanted) for rows in found
        ]

    def _footer(self, file: LakeFile) -> _Footer:
        with self._lock:
            known = self._footers.get(file.path)
            if known is not None:
                self._footers.move_to_end(file.path)
                return known
        try:
            metadata = pq.read_metadata(local_path(file.path))
        except (OSError, pa.ArrowException) as exc:
            raise _gone(file) from exc
        read = _Footer(metadata, tuple(self._groups(file, metadata)), self._is_plain(metadata))
        with self._lock:
            self._footers[file.path] = read
            while len(self._footers) > _FOOTERS:
                self._footers.popitem(last=False)
        return read

    def _is_plain(self, metadata: pq.FileMetaData) -> bool:
        found = {field.name: field for field in metadata.schema.to_arrow_schema()}
        return all(
            (other := found.get(ours.name)) is not None
            and other.type == ours.type
            and _field_id(other) == _field_id(ours)
            for ours in self.columns
        )

    def _groups(self, file: LakeFile, metadata: pq.FileMetaData) -> Iterable[RowGroup]:
        places = {metadata.schema.column(at).path: at for at in range(metadata.num_columns)}
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            symbols = _ends(group, places.get("symbol"))
            times = _ends(group, places.get(self._time_column))
            times_us = None if times is None else (_us(times[0]), _us(times[1]))
            yield RowGroup(file, index, group.num_rows, symbols, times_us)


def _ends(group: Any, column: int | None) -> tuple[Any, Any] | None:
    statistics = None if column is None else group.column(column).statistics
    if statistics is None or not statistics.has_min_max:
        return None
    return statistics.min, statistics.max


def _us(moment: Any) -> int:
    return int(pc.cast(pa.scalar(moment, pa.timestamp("us", "UTC")), pa.int64()).as_py())


def _field_id(field: pa.Field) -> bytes | None:
    return (field.metadata or {}).get(FIELD_ID)


def _gone(file: LakeFile) -> FileGoneError:
    log.warning("data_file_unreadable", path=file.path)
    return FileGoneError("a data file of the lake cannot be read; the log has the details")
