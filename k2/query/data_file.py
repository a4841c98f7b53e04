"""What one Parquet data file says of its row groups, and the rows of some of them.

A file never changes, so what its footer says is read once. The file itself is opened for each
question: left open, one that maintenance removed would keep its place on the disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from k2.lake.columns import FIELD_ID
from k2.lake.reader import LakeFile
from k2.query.database import local_path
from k2.times import micros

#: From here on a second core decodes sooner than it wakes.
_THREADS_ROWS: Final = 65_536


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group of a file: how many rows, and what its statistics say of them."""

    file: LakeFile
    index: int
    rows: int
    symbols: tuple[str, str] | None
    times_us: tuple[int, int] | None


@dataclass(frozen=True)
class Footer:
    """What is known of a file of K2's `columns`. Thread-safe."""

    file: LakeFile
    metadata: pq.FileMetaData
    columns: pa.Schema
    time_column: str
    _constants: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, file: LakeFile, columns: pa.Schema, time_column: str) -> Footer:
        """Raises `OSError` or `ArrowException`."""
        with pa.memory_map(local_path(file.path)) as source:
            return cls(file, pq.read_metadata(source), columns, time_column)

    @property
    def chunks(self) -> int:
        """Columns of row groups: what a footer weighs."""
        return int(self.metadata.num_row_groups * self.metadata.num_columns)

    @cached_property
    def plain(self) -> bool:
        """True when the file has our columns under our names, ids and types."""
        found = {one.name: one for one in self.metadata.schema.to_arrow_schema()}
        return all(
            (other := found.get(ours.name)) is not None
            and other.type == ours.type
            and _field_id(other) == _field_id(ours)
            for ours in self.columns
        )

    @cached_property
    def groups(self) -> tuple[RowGroup, ...]:
        """All row groups."""
        return tuple(self._groups())

    def constants(self, index: int) -> Mapping[str, Any]:
        """The columns of which a row group has one value only, and that value."""
        known = self._constants.get(index)
        if known is None:
            known = self._constants[index] = dict(self._found_constants(index))
        return known

    def _found_constants(self, index: int) -> Iterable[tuple[str, Any]]:
        group = self.metadata.row_group(index)
        for name in self.columns.names:
            statistics = _statistics(group, self._places.get(name))
            # Nulls are in neither end.
            if statistics is not None and statistics.null_count == 0:
                value = statistics.min
                if value == statistics.max:
                    yield name, value

    def open(self) -> pq.ParquetFile:
        """The file itself, for `rows`; closed when nobody has it any more.

        Raises `OSError` or `ArrowException`.
        """
        source = pa.memory_map(local_path(self.file.path))
        # Reading ahead is for stores that are far away.
        return pq.ParquetFile(source, metadata=self.metadata, pre_buffer=False)

    def rows(
        self, opened: pq.ParquetFile, indexes: Sequence[int], names: Sequence[str]
    ) -> pa.Table:
        """The columns `names` of all rows of some row groups, in the order of both.

        One thread at a time may have a file `opened`. Raises `OSError` or `ArrowException`.
        """
        total = sum(self.groups[index].rows for index in indexes)
        found = opened.read_row_groups(
            indexes, columns=list(names), use_threads=total >= _THREADS_ROWS
        )
        schema = pa.schema([self.columns.field(name) for name in names])
        return pa.Table.from_arrays([found[name] for name in names], schema=schema)

    @cached_property
    def _places(self) -> Mapping[str, int]:
        schema = self.metadata.schema
        return {schema.column(at).path: at for at in range(self.metadata.num_columns)}

    def _groups(self) -> Iterable[RowGroup]:
        for index in range(self.metadata.num_row_groups):
            group = self.metadata.row_group(index)
            symbols = _ends(group, self._places.get("symbol"))
            times = _ends(group, self._places.get(self.time_column))
            times_us = None if times is None else (micros(times[0]), micros(times[1]))
            yield RowGroup(self.file, index, group.num_rows, symbols, times_us)


def _ends(group: Any, column: int | None) -> tuple[Any, Any] | None:
    """The least and the greatest value of a column; None: not known."""
    statistics = _statistics(group, column)
    return None if statistics is None else (statistics.min, statistics.max)


def _statistics(group: Any, column: int | None) -> Any:
    """Of a column that has both ends; else None."""
    found = None if column is None else group.column(column).statistics
    return found if found is not None and found.has_min_max else None


def _field_id(one: pa.Field) -> bytes | None:
    return (one.metadata or {}).get(FIELD_ID)
