"""The cold side of a query: the data files of one pinned snapshot, pruned, as SQL.

The list of files is planned once per snapshot and kept; `iceberg_scan` would read all manifests at
each query. Columns are mapped by field id, as Iceberg demands, so that renamed and added columns
read right. A snapshot with delete files is left to `iceberg_scan`, which knows them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final

import pyarrow as pa

from k2.lake.columns import FIELD_ID
from k2.lake.files import symbol_bucket
from k2.lake.reader import LakeFile
from k2.lake.vector import Vector
from k2.query.bounds import Bounds
from k2.query.cold_rows import ColdRows
from k2.query.database import local_path, quote

#: Parts of a total order, so that two runs of a query over the same rows agree to the last row.
TIE_BREAK: Final = ("platform_sequence", "log_partition", "log_topic", "log_epoch")


#: Bounds whose files a snapshot remembers: the same questions come again and again.
_SELECTIONS: Final = 256


class ColdSnapshot:
    """A pinned snapshot of one table with its planned files. Immutable.

    `columns`: K2's Arrow schema with Parquet field ids; `added`: columns the table has beyond it.
    `metadata_location`: given when the snapshot has delete files, which only `iceberg_scan`
    applies. `pinned_s`: monotonic seconds. `reader`: reads a few of its files.
    """

    def __init__(
        self,
        *,
        snapshot_id: int | None,
        vector: Vector,
        columns: pa.Schema,
        files: Sequence[LakeFile],
        metadata_location: str | None = None,
        pinned_s: float = 0.0,
        reader: ColdRows | None = None,
        added: Sequence[pa.Field] = (),
    ) -> None:
        self.snapshot_id = snapshot_id
        self.vector = vector
        self.columns = columns
        self.added = tuple(added)
        self.files = tuple(sorted(files, key=latest_first))
        self.metadata_location = metadata_location
        self.pinned_s = pinned_s
        self._reader = reader
        self._selected: dict[Bounds, list[LakeFile]] = {}
        self._by_bucket: dict[int | None, list[LakeFile]] = {}
        for file in self.files:
            self._by_bucket.setdefault(file.bucket, []).append(file)

    @property
    def cost(self) -> int:
        return len(self.files)

    def select(self, bounds: Bounds) -> list[LakeFile]:
        """The files that may hold rows within `bounds`, the latest time bound first."""
        known = self._selected.get(bounds)
        if known is None:
            if len(self._selected) >= _SELECTIONS:
                self._selected = {}
            known = self._selected[bounds] = self._select(bounds)
        return known

    def _select(self, bounds: Bounds) -> list[LakeFile]:
        if bounds.symbols is None:
            buckets: Iterable[int | None] = self._by_bucket
        else:
            # None: files of another partitioning, which may hold anything.
            buckets = {None, *(symbol_bucket(symbol) for symbol in bounds.symbols)}
        found: list[LakeFile] = []
        for bucket in buckets:
            own, files = bounds.of_bucket(bucket), self._by_bucket.get(bucket, ())
            found += (file for file in files if own.meet(file.symbols, file.times_us))
        return sorted(found, key=latest_first)

    def reader(self, files: Collection[LakeFile]) -> ColdRows | None:
        """What reads `files` faster than DuckDB would; None when it has to be DuckDB."""
        if self.metadata_location is not None or self._reader is None:
            return None
        return self._reader if self._reader.takes(files) else None

    def scan(self, files: Collection[LakeFile]) -> str | None:
        """A table expression over `files` for FROM; None when there is nothing to read."""
        if self.metadata_location is not None:
            location = quote(local_path(self.metadata_location))
            return f"iceberg_scan({location}, snapshot_from_id = {self.snapshot_id}::UBIGINT)"
        if not files:
            return None
        paths = ", ".join(quote(local_path(file.path)) for file in files)
        schema = field_id_schema([*self.columns, *self.added])
        return f"read_parquet([{paths}], schema = {schema})"


def latest_first(file: LakeFile) -> tuple[bool, int]:
    """Sort key; a file without a bound may hold anything and comes first."""
    return (False, 0) if file.times_us is None else (True, -file.times_us[1])


def field_id_schema(columns: Iterable[pa.Field]) -> str:
    """The `schema` parameter of `read_parquet`: columns by Parquet field id."""
    parts = []
    for field in columns:
        field_id = int((field.metadata or {})[FIELD_ID])
        parts.append(
            f"{field_id}: {{name: {quote(field.name)}, type: {quote(sql_type(field.type))}, "
            "default_value: NULL}"
        )
    return f"MAP {{{', '.join(parts)}}}"


def sql_type(kind: pa.DataType) -> str:
    """DuckDB's name of a lake column's type."""
    if pa.types.is_list(kind):
        return f"{sql_type(kind.value_type)}[]"
    if pa.types.is_decimal(kind):
        return f"DECIMAL({kind.precision},{kind.scale})"
    if pa.types.is_timestamp(kind):
        return "TIMESTAMPTZ" if kind.tz else "TIMESTAMP"
    names: dict[pa.DataType, str] = {
        pa.string(): "VARCHAR",
        pa.int64(): "BIGINT",
        pa.int32(): "INTEGER",
        pa.bool_(): "BOOLEAN",
    }
    return names[kind]


def identifier(name: str) -> str:
    """A SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def column_list(names: Iterable[str]) -> str:
    return ", ".join(identifier(name) for name in names)
