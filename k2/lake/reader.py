"""Pinned snapshots and their files, planned once.

A scan through Iceberg re-reads all manifests each time. Here a manifest, which never changes, is
read once and kept; a new snapshot costs only its new manifests.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.conversions import from_bytes
from pyiceberg.exceptions import NoSuchTableError, RESTError
from pyiceberg.io import FileIO
from pyiceberg.manifest import DataFile, ManifestContent, ManifestFile
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Snapshot
from requests.exceptions import RequestException
from sqlalchemy.exc import SQLAlchemyError

from k2.errors import LakeError, SnapshotNotFoundError
from k2.lake import corrections
from k2.lake.files import day_of, symbol_bucket
from k2.lake.history import ancestors, vector_at
from k2.lake.manifests import live_manifests
from k2.lake.tables import TABLES, TableDef
from k2.lake.vector import Vector

#: A manifest (a sealed one has a thousand files, about 1 MB) is kept until its table has been
#: planned so often without it.
_PLANS_KEPT: Final = 100
_CACHED_LISTS: Final = 64


@dataclass(frozen=True, slots=True)
class Pinned:
    """One snapshot of one table, and what it holds. `snapshot_id` None: nothing yet."""

    table: TableDef
    snapshot_id: int | None
    timestamp_ms: int
    metadata_location: str
    vector: Vector
    metadata: TableMetadata
    io: FileIO

    @property
    def schema(self) -> Schema:
        """The columns as they were when the snapshot was made."""
        snapshot = self.snapshot
        known = {one.schema_id: one for one in self.metadata.schemas}
        made = None if snapshot is None else snapshot.schema_id
        return self.metadata.schema() if made is None else known.get(made, self.metadata.schema())

    @property
    def snapshot(self) -> Snapshot | None:
        if self.snapshot_id is None:
            return None
        return self.metadata.snapshot_by_id(self.snapshot_id)


@dataclass(frozen=True, slots=True)
class LakeFile:
    """A data file of a snapshot.

    `day` (days since 1970 UTC) and `bucket` are None for files of another partitioning, a bound is
    None where the writer left none: such a file is never pruned by it. Times are microseconds UTC.
    """

    path: str
    day: int | None
    bucket: int | None
    rows: int
    bytes: int
    symbols: tuple[str, str] | None
    times_us: tuple[int, int] | None
    sequences: tuple[int, int] | None
    epochs: tuple[str, str] | None
    topics: tuple[str, str] | None
    exchanges: tuple[str, str] | None

    def may_hold(self, symbols: Iterable[str] | None) -> bool:
        """False when no symbol of `symbols` can be in the file."""
        if symbols is None or self.symbols is None:
            return True
        low, high = self.symbols
        return any(low <= symbol <= high for symbol in symbols)

    def overlaps(self, start_us: int | None, end_us: int | None) -> bool:
        """False when no row can have `start_us <= time < end_us`."""
        if self.times_us is None:
            return True
        low, high = self.times_us
        return (start_us is None or high >= start_us) and (end_us is None or low < end_us)


class _Manifest:
    """The live files of one manifest, by bucket."""

    __slots__ = ("by_bucket", "days")

    def __init__(self, files: list[LakeFile]) -> None:
        self.by_bucket: dict[int | None, list[LakeFile]] = {}
        for file in files:
            self.by_bucket.setdefault(file.bucket, []).append(file)
        days = [file.day for file in files]
        known = [day for day in days if day is not None]
        self.days = (min(known), max(known)) if known and len(known) == len(days) else None

    def select(self, buckets: set[int] | None) -> Iterator[LakeFile]:
        for bucket, files in self.by_bucket.items():
            if buckets is None or bucket is None or bucket in buckets:
                yield from files

    def outside(self, first_day: int | None, last_day: int | None) -> bool:
        if self.days is None:
            return False
        low, high = self.days
        return (first_day is not None and high < first_day) or (
            last_day is not None and low > last_day
        )


class _Manifests:
    """Manifests of one table, those of its last plans: each commit leaves some behind."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[_Manifest, int]] = OrderedDict()
        self._plans = 0

    def __len__(self) -> int:
        return len(self._known)

    def begin_plan(self) -> None:
        self._plans += 1
        while self._known and next(iter(self._known.values()))[1] < self._plans - _PLANS_KEPT:
            self._known.popitem(last=False)

    def get(self, path: str) -> _Manifest | None:
        found = self._known.get(path)
        if found is None:
            return None
        self.put(path, found[0])
        return found[0]

    def put(self, path: str, manifest: _Manifest) -> None:
        self._known[path] = manifest, self._plans
        self._known.move_to_end(path)


class LakeReader:
    """Pins snapshots and lists their files. Thread-safe; reads metadata only, never rows."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._lists: OrderedDict[str, list[ManifestFile]] = OrderedDict()
        self._manifests: dict[str, _Manifests] = {}
        self._lock = threading.Lock()

    def current(self, table: TableDef | str) -> Pinned:
        """The newest snapshot. With the SQL catalog an unchanged table costs one small query.

        Raises `LakeError` when the table is missing or the catalog does not answer.
        """
        definition = _definition(table)
        loaded = self._load(definition)
        return _pin(definition, loaded, loaded.metadata.current_snapshot())

    def at(self, table: TableDef | str, timestamp_ms: int) -> Pinned:
        """The snapshot that was current at a time. Raises `LakeError` when none is that old."""
        definition = _definition(table)
        loaded = self._load(definition)
        oldest: Snapshot | None = None
        for snapshot in ancestors(loaded.metadata, loaded.metadata.current_snapshot()):
            if snapshot.timestamp_ms <= timestamp_ms:
                return _pin(definition, loaded, snapshot)
            oldest = snapshot
        raise SnapshotNotFoundError(
            f"table {definition} has no snapshot at or before {timestamp_ms} ms; the oldest kept "
            f"is of {oldest.timestamp_ms if oldest else '(none)'}",
            table=str(definition),
            timestamp_ms=timestamp_ms,
        )

    def by_id(self, table: TableDef | str, snapshot_id: int) -> Pinned:
        """A snapshot by its id. Raises `LakeError` when it is not (or no longer) in the table."""
        definition = _definition(table)
        loaded = self._load(definition)
        snapshot = loaded.metadata.snapshot_by_id(snapshot_id)
        if snapshot is None:
            raise SnapshotNotFoundError(
                f"table {definition} has no snapshot {snapshot_id}; it may have expired",
                table=str(definition),
                snapshot_id=snapshot_id,
            )
        return _pin(definition, loaded, snapshot)

    def has_deletes(self, pinned: Pinned) -> bool:
        """True when the snapshot has delete files: its data files alone are not its rows."""
        return any(manifest.content == ManifestContent.DELETES for manifest in self._live(pinned))

    def cancelled(
        self, exchange: str, symbols: set[str], columns: Sequence[str]
    ) -> pa.Table | None:
        """Trades taken out by hand; None when none ever was. Raises `LakeError`."""
        try:
            return corrections.cancelled(self._catalog, exchange, symbols, columns)
        except (RESTError, RequestException, SQLAlchemyError, OSError, pa.ArrowException) as exc:
            raise LakeError(
                f"market_data.corrections cannot be read ({type(exc).__name__}): without it a "
                "cancelled trade might come back; check K2_ICEBERG_CATALOG_URI",
                table="market_data.corrections",
            ) from exc

    def files(self, pinned: Pinned) -> list[LakeFile]:
        """All data files, newest first."""
        return self.files_for(pinned)

    def files_for(
        self,
        pinned: Pinned,
        symbols: set[str] | None = None,
        start_us: int | None = None,
        end_us: int | None = None,
    ) -> list[LakeFile]:
        """Files that can hold rows of `symbols` with `start_us <= time < end_us`, newest first."""
        if end_us is not None and start_us is not None and end_us <= start_us:
            return []
        buckets = None if symbols is None else {symbol_bucket(symbol) for symbol in symbols}
        first = None if start_us is None else day_of(start_us)
        last = None if end_us is None else day_of(end_us - 1)
        with self._lock:
            self._manifests.setdefault(str(pinned.table), _Manifests()).begin_plan()
        chosen = [
            file
            for manifest in self._planned(pinned)
            if not manifest.outside(first, last)
            for file in manifest.select(buckets)
            if file.overlaps(start_us, end_us) and file.may_hold(symbols)
        ]
        chosen.sort(key=_newest_first, reverse=True)
        return chosen

    def _planned(self, pinned: Pinned) -> list[_Manifest]:
        return [
            self._manifest(pinned, manifest)
            for manifest in self._live(pinned)
            if manifest.content == ManifestContent.DATA
        ]

    def _live(self, pinned: Pinned) -> list[ManifestFile]:
        snapshot = pinned.snapshot
        if snapshot is None:
            return []
        with self._lock:
            known = self._lists.get(snapshot.manifest_list)
        if known is not None:
            return known
        try:
            live = live_manifests(snapshot, pinned.io)
        except (OSError, pa.ArrowException) as exc:
            raise _gone(pinned, exc) from exc
        with self._lock:
            self._lists[snapshot.manifest_list] = live
            while len(self._lists) > _CACHED_LISTS:
                self._lists.popitem(last=False)
        return live

    def _manifest(self, pinned: Pinned, manifest: ManifestFile) -> _Manifest:
        path = manifest.manifest_path
        with self._lock:
            kept = self._manifests.setdefault(str(pinned.table), _Manifests())
            known = kept.get(path)
            if known is not None:
                return known
        try:
            entries = manifest.fetch_manifest_entry(pinned.io, discard_deleted=True)
        except (OSError, pa.ArrowException) as exc:
            raise _gone(pinned, exc) from exc
        spec = pinned.metadata.specs()[manifest.partition_spec_id]
        ours = spec.fields == pinned.table.partition_spec.fields
        read = _Manifest([_lake_file(pinned.table, entry.data_file, ours) for entry in entries])
        with self._lock:
            kept.put(path, read)
        return read

    def _load(self, table: TableDef) -> Table:
        try:
            return self._catalog.load_table(table.identifier)
        except NoSuchTableError as exc:
            raise LakeError(
                f"table {table} is not in the catalog; a worker with the role `sink` creates it",
                table=str(table),
            ) from exc
        except (RESTError, RequestException, SQLAlchemyError, OSError) as exc:
            raise LakeError(
                f"table {table}: the catalog does not answer ({type(exc).__name__}); check "
                "K2_ICEBERG_CATALOG_URI",
                table=str(table),
            ) from exc


def _definition(table: TableDef | str) -> TableDef:
    if isinstance(table, TableDef):
        return table
    if table not in TABLES:
        raise LakeError(f"table {table!r} is unknown; allowed: {', '.join(TABLES)}", table=table)
    return TABLES[table]


def _pin(table: TableDef, loaded: Table, snapshot: Snapshot | None) -> Pinned:
    return Pinned(
        table,
        None if snapshot is None else snapshot.snapshot_id,
        0 if snapshot is None else snapshot.timestamp_ms,
        loaded.metadata_location,
        vector_at(loaded.metadata, snapshot),
        loaded.metadata,
        loaded.io,
    )


def _gone(pinned: Pinned, exc: Exception) -> LakeError:
    return LakeError(
        f"snapshot {pinned.snapshot_id} of {pinned.table} cannot be read ({exc}); it may have "
        "expired since it was pinned: pin the current one",
        table=str(pinned.table),
        snapshot_id=pinned.snapshot_id,
    )


def _newest_first(file: LakeFile) -> tuple[int, int]:
    last = file.times_us[1] if file.times_us else 2**63
    return (file.day if file.day is not None else 2**31, last)


def _lake_file(table: TableDef, file: DataFile, ours: bool) -> LakeFile:
    partition = file.partition
    return LakeFile(
        path=file.file_path,
        day=partition[0] if ours else None,
        bucket=partition[1] if ours else None,
        rows=file.record_count,
        bytes=file.file_size_in_bytes,
        symbols=_bounds(table, file, "symbol"),
        times_us=_bounds(table, file, table.time_column),
        sequences=_bounds(table, file, "platform_sequence"),
        epochs=_bounds(table, file, "log_epoch"),
        topics=_bounds(table, file, "log_topic"),
        exchanges=_bounds(table, file, "exchange"),
    )


def _bounds(table: TableDef, file: DataFile, name: str) -> Any:
    if name not in table.bounded:
        return None
    field = table.schema.find_field(name)
    low = (file.lower_bounds or {}).get(field.field_id)
    high = (file.upper_bounds or {}).get(field.field_id)
    if low is None or high is None:
        return None
    kind: Any = field.field_type
    return (from_bytes(kind, low), from_bytes(kind, high))
