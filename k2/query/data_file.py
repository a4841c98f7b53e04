"""What one Parquet data file says of its row groups, and the rows of some of them.

A file never changes, so what its footer says is read once. The file itself is opened for each
question: left open, one that maintenance removed would keep its place on the disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from k2.lake.columns import FIELD_ID
from k2.lake.reader import LakeFile
from k2.query.database import local_path
from k2.times import micros

#: So many rows of one file are decoded by Arrow's threads too: fewer are done before those wake.
_THREADS_ROWS: Final = 65_536


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group of a file: how many rows, and what its statistics say of them."""

    file: LakeFile
    index: int
    rows: int
    symbols: tuple[str, str] | None
    times_us: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Footer:
    """What is known of a file of K2's `columns`. Thread-safe.

    `plain`: it has them under our names, ids and types. `places`: of its Parquet columns, by path.
    """

    file: LakeFile
    metadata: pq.FileMetaData
    columns: pa.Schema
    plain: bool
    groups: tuple[RowGroup, ...]
    _places: Mapping[str, int]
    _constants: dict[int, Mapping[str, Any]] = field(default_factory=dict, init=False)

    @classmethod
    def read(cls, file: LakeFile, columns: pa.Schema, time_column: str) -> Footer:
        """Raises `OSError` or `ArrowException`."""
        with pa.memory_map(local_path(file.path)) as source:
            metadata = pq.read_metadata(source)
        paths = (metadata.schema.column(at).path for at in range(metadata.num_columns))
        places = {path: at for at, path in enumerate(paths)}
        plain = _is_plain(metadata.schema.to_arrow_schema(), columns)
        groups = _groups(file, metadata, places, time_column)
        return cls(file, metadata, columns, plain, tuple(groups), places)

    @property
    def chunks(self) -> int:
        """Columns of row groups: what a footer weighs."""
        return int(self.metadata.num_row_groups * self.metadata.num_columns)

    def constants(self, index: int) -> Mapping[str, Any]:
        """The columns of which a row group has one value only, and that value."""
        known = self._constants.get(index)
        if known is None:
            group = self.metadata.row_group(index)
            # Nulls are in neither end.
            ends = (
                (name, _ends(group, self._places.get(name), without_nulls=True))
                for name in self.columns.names
            )
            known = {name: two[0] for name, two in ends if two is not None and two[0] == two[1]}
            self._constants[index] = known
        return known

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


def _is_plain(schema: pa.Schema, columns: pa.Schema) -> bool:
    found = {one.name: one for one in schema}
    return all(
        (other := found.get(ours.name)) is not None
        and other.type == ours.type
        and _field_id(other) == _field_id(ours)
        for ours in columns
    )


def _groups(
    file: LakeFile, metadata: pq.FileMetaData, places: Mapping[str, int], time_column: str
) -> Iterable[RowGroup]:
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        symbols = _ends(group, places.get("symbol"))
        times = _ends(group, places.get(time_column))
        times_us = None if times is None else (micros(times[0]), micros(times[1]))
        yield RowGroup(file, index, group.num_rows, symbols, times_us)


def _ends(group: Any, column: int | None, *, without_nulls: bool = False) -> tuple[Any, Any] | None:
    """The least and the greatest value of a column; None: not known, or there may be nulls."""
    statistics = None if column is None else group.column(column).statistics
    if statistics is None or not statistics.has_min_max:
        return None
    if without_nulls and statistics.null_count != 0:
        return None
    try:
        return statistics.min, statistics.max
    except (OverflowError, ValueError):
        # Python has no such value: a time after 9999, in a column another writer tells of.
        return None


def _field_id(one: pa.Field) -> bytes | None:
    return (one.metadata or {}).get(FIELD_ID)
