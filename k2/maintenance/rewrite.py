"""Rewrite files of one partition as few sorted ones, a chunk of each at a time.

Memory is bounded by `CHUNK_BYTES` (all chunks together) and one row group to be written, whatever
the files' size.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.conversions import to_bytes
from pyiceberg.io import FileIO
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.manifest import DataFile
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.typedef import Record
from pyiceberg.types import PrimitiveType

from k2.errors import LakeError
from k2.lake.columns import conform, field_id
from k2.lake.files import (
    data_file,
    data_location,
    delete_files,
    parquet_options,
    row_group_rows,
)
from k2.lake.tables import TableDef
from k2.maintenance.merge import UnsortedRunError, merge_sorted, sort_rows
from k2.maintenance.plan import Group
from k2.maintenance.versions import newest_only

#: Arrow bytes of the chunks of all inputs together.
CHUNK_BYTES: Final = 48 * 1024 * 1024
_ROW_BYTES: Final = 320
_FEWEST_CHUNK_ROWS: Final = 512


@dataclass(frozen=True)
class Rewriter:
    """Rewrites groups of files of one table. `target_bytes`: where a file ends and the next begins.

    `chunk_bytes`: Arrow bytes held of all inputs together. `edit`: what becomes of the rows read;
    it may take some out, so whoever gives it counts them.
    """

    table: TableDef
    metadata: TableMetadata
    io: FileIO
    target_bytes: int
    chunk_bytes: int = CHUNK_BYTES
    edit: Callable[[pa.Table], pa.Table] | None = None

    def rewrite(self, group: Group, name: str) -> list[DataFile]:
        """Write the group's rows; returns what the manifest needs.

        On a failure nothing stays behind. Raises `LakeError` for a file that cannot be read or rows
        that went missing, `OSError` and `ArrowException` for the store.
        """
        unsorted: set[int] = set()
        while True:
            output = _Output(self, group, f"{name}-{len(unsorted)}")
            try:
                with ExitStack() as stack:
                    for rows in self._kept(group, self._merged(group, unsorted, stack)):
                        output.write(rows)
                files = output.close()
                self._check(group, files)
            except UnsortedRunError as exc:
                # Another engine's file, or one of an older order: sort it on its own first.
                output.abandon()
                if exc.index in unsorted:
                    raise
                unsorted.add(exc.index)
            except BaseException:
                output.abandon()
                raise
            else:
                return files

    def _merged(self, group: Group, unsorted: set[int], stack: ExitStack) -> Iterator[pa.Table]:
        """The group's rows in order; those of small files in one go, which is much faster."""
        if group.rows * _ROW_BYTES > self.chunk_bytes:
            yield from merge_sorted(self._runs(group, unsorted, stack), self.table.sort_columns)
            return
        chunks = [
            chunk for file in group.files for chunk in self._chunks(file.path, max(1, file.rows))
        ]
        yield sort_rows(pa.concat_tables(chunks), self.table.sort_columns)

    def _drops(self, group: Group) -> bool:
        """True when rows that newer ones have replaced are left out."""
        return group.closed and bool(self.table.version_of)

    def _kept(self, group: Group, merged: Iterator[pa.Table]) -> Iterator[pa.Table]:
        if not self._drops(group):
            return merged
        return newest_only(merged, self.table.sort_columns, self.table.version_of)

    def _check(self, group: Group, files: Sequence[DataFile]) -> None:
        written = sum(file.record_count for file in files)
        whole = self.edit is None and not self._drops(group)
        if (whole and written != group.rows) or written > group.rows:
            raise LakeError(
                f"compaction of {self.table} read {group.rows} rows and wrote {written}; nothing "
                "was committed",
                table=str(self.table),
            )

    def _runs(self, group: Group, unsorted: set[int], stack: ExitStack) -> list[Iterator[pa.Table]]:
        share = self.chunk_bytes // _ROW_BYTES // len(group.files)
        chunk_rows = max(_FEWEST_CHUNK_ROWS, share)
        runs = []
        for index, file in enumerate(group.files):
            chunks = self._chunks(file.path, chunk_rows)
            if index in unsorted:
                chunks = self._sorted(chunks, stack, chunk_rows)
            runs.append(chunks)
        return runs

    def _chunks(self, path: str, chunk_rows: int) -> Iterator[pa.Table]:
        """The file's rows in the table's present columns, mapped by field id."""
        try:
            with (
                self.io.new_input(path).open() as stream,
                pq.ParquetFile(stream, pre_buffer=False) as parquet,
            ):
                for batch in parquet.iter_batches(chunk_rows, use_threads=False):
                    rows = conform(pa.Table.from_batches([batch]), self.schema)
                    yield rows if self.edit is None else self.edit(rows)
        except FileNotFoundError as exc:
            raise LakeError(
                f"data file {path} of {self.table} is not there; restore it or roll the table "
                "back to a snapshot without it",
                path=path,
            ) from exc

    def chunks(self, path: str) -> Iterator[pa.Table]:
        """A file's rows, edited, a part at a time. Raises `LakeError`."""
        return self._chunks(path, self.chunk_bytes // _ROW_BYTES)

    def _sorted(
        self, chunks: Iterator[pa.Table], stack: ExitStack, chunk_rows: int
    ) -> Iterator[pa.Table]:
        """Sort a run by way of a scratch file of sorted pieces."""
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="k2-sort-")))
        pieces = []
        for number, chunk in enumerate(chunks):
            path = folder / f"{number}.arrow"
            ordered = sort_rows(chunk, self.table.sort_columns)
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, self.schema) as writer:
                writer.write_table(ordered, max_chunksize=max(1, chunk_rows // 16))
            pieces.append(path)
        yield from merge_sorted([_spilled(path) for path in pieces], self.table.sort_columns)

    @cached_property
    def schema(self) -> pa.Schema:
        """Columns of the table now: K2's as K2 types them, others' as Iceberg does."""
        ours = {field_id(column): column for column in self.table.arrow_schema}
        found = schema_to_pyarrow(self.metadata.schema(), include_field_ids=True)
        return pa.schema([_named(ours.get(field_id(column)), column) for column in found])


def _named(ours: pa.Field | None, found: pa.Field) -> pa.Field:
    return found if ours is None else ours.with_name(found.name)


def _spilled(path: Path) -> Iterator[pa.Table]:
    with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as reader:
        for number in range(reader.num_record_batches):
            yield pa.Table.from_batches([reader.get_batch(number)])


@dataclass(slots=True)
class _Bounds:
    """Lowest and highest value of the bounded columns so far."""

    low: dict[str, Any] = field(default_factory=dict)
    high: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, column: pa.ChunkedArray) -> None:
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.int64())
        found = pc.min_max(column).as_py()
        low, high = found["min"], found["max"]
        self.low[name] = min(self.low.get(name, low), low)
        self.high[name] = max(self.high.get(name, high), high)

    def encoded(self, table: TableDef, values: dict[str, Any]) -> dict[int, bytes]:
        result = {}
        for name, value in values.items():
            column = table.schema.find_field(name)
            kind = column.field_type
            assert isinstance(kind, PrimitiveType)
            result[column.field_id] = to_bytes(kind, value)
        return result


class _Output:
    """Sorted rows into files of about the target size, a row group at a time."""

    def __init__(self, rewriter: Rewriter, group: Group, name: str) -> None:
        self._rewriter = rewriter
        self._group = group
        self._name = name
        self._options = parquet_options(rewriter.table, rewriter.metadata)
        self._group_rows = row_group_rows(group.rows, self._options.pop("row_group_size"))
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._files: list[DataFile] = []
        self._paths: list[str] = []
        self._stream: Any = None
        self._writer: Any = None
        self._rows = 0
        self._bounds = _Bounds()

    def write(self, rows: pa.Table) -> None:
        self._waiting.append(rows)
        self._waiting_rows += rows.num_rows
        while self._waiting_rows >= self._group_rows:
            self._flush(self._group_rows)
            if self._stream.tell() >= self._rewriter.target_bytes:
                self._end_file()

    def close(self) -> list[DataFile]:
        if self._waiting_rows:
            self._flush(self._waiting_rows)
        if self._writer is not None:
            self._end_file()
        return self._files

    def abandon(self) -> None:
        """Delete all that was written."""
        if self._writer is not None:
            self._writer.close()
            self._stream.close()
        delete_files(self._rewriter.io, self._paths)

    def _flush(self, count: int) -> None:
        """Write `count` of the waiting rows as one row group."""
        rows = pa.concat_tables(self._waiting)
        part, rest = rows.slice(0, count), rows.slice(count)
        self._waiting = [rest] if rest.num_rows else []
        self._waiting_rows = rest.num_rows
        if self._writer is None:
            self._begin_file(part.schema)
        self._writer.write_table(part, row_group_size=self._group_rows)
        self._rows += part.num_rows
        for name in self._rewriter.table.bounded:
            self._bounds.add(name, part[name])

    def _begin_file(self, schema: pa.Schema) -> None:
        rewriter, group = self._rewriter, self._group
        name = f"{self._name}-{len(self._paths):05d}"
        location = data_location(rewriter.table, rewriter.metadata, group.day, group.bucket, name)
        self._paths.append(location)
        self._stream = rewriter.io.new_output(location).create(overwrite=True)
        self._writer = pq.ParquetWriter(self._stream, schema, **self._options)
        self._rows, self._bounds = 0, _Bounds()

    def _end_file(self) -> None:
        rewriter, bounds = self._rewriter, self._bounds
        self._writer.close()
        size = self._stream.tell()
        self._stream.close()
        self._writer = self._stream = None
        self._files.append(
            data_file(
                rewriter.metadata,
                self._paths[-1],
                Record(self._group.day, self._group.bucket),
                self._rows,
                size,
                bounds.encoded(rewriter.table, bounds.low),
                bounds.encoded(rewriter.table, bounds.high),
            )
        )
