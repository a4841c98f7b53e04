"""A table of the lake from a backup, at its old place or another.

Iceberg's metadata names files by their whole location. Elsewhere, manifests, manifest lists and
the metadata file are therefore written anew with the new locations, record by record and otherwise
unchanged; data files are copied as they are.
"""

from __future__ import annotations

import io
import uuid
from dataclasses import asdict, dataclass
from typing import Any, Final

import fastavro
import msgspec
import pyarrow as pa
import structlog
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NamespaceAlreadyExistsError, NoSuchTableError
from pyiceberg.io import FileIO, load_file_io

from k2.clock import SYSTEM_CLOCK, Clock
from k2.errors import LakeError
from k2.lake.reader import LakeReader
from k2.lake.tables import NAMESPACE, TableDef
from k2.maintenance.backup import BackupList, BackupStore, copy_all, write_bytes
from k2.maintenance.reach import key_of, listed

log = structlog.get_logger(__name__)

#: Avro header keys that the writer sets itself.
_AVRO_OWN: Final = ("avro.schema", "avro.codec")


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did."""

    table: str
    name: str
    location: str
    rows: int
    files: int
    copied_files: int
    copied_bytes: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": round(self.seconds, 3)}


class Restore:
    """Restores tables into `catalog` below `warehouse`; blocking."""

    def __init__(
        self,
        catalog: Catalog,
        store: BackupStore,
        warehouse: str,
        properties: dict[str, str],
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._warehouse = warehouse.rstrip("/")
        self._properties = properties
        self._clock = clock

    def run(self, table: TableDef, name: str | None = None) -> Restored:
        """Copy what is missing and register the table.

        Raises `LakeError` when the table is in the catalog already, a file of the backup is not as
        it was, or the rows are not those that were backed up.
        """
        started_s = self._clock.monotonic_s()
        self._refuse_existing(table)
        found = self._store.read(table, name)
        target = f"{self._warehouse}/{NAMESPACE}/{table.name}"
        io_ = load_file_io(self._properties, target)
        move = _Move(self._store, table, found, target, io_)
        copied = move.data()
        metadata_location = move.metadata()
        self._register(table, metadata_location)
        self._check(table, found)
        return Restored(
            str(table),
            found.name,
            target,
            found.rows,
            len(found.files),
            len(copied),
            sum(copied),
            self._clock.monotonic_s() - started_s,
        )

    def _refuse_existing(self, table: TableDef) -> None:
        try:
            self._catalog.load_table(table.identifier)
        except NoSuchTableError:
            return
        raise LakeError(
            f"table {table} is in the catalog already; a restore makes it anew. Stop the workers, "
            "drop it from the catalog (its files may stay), or restore with another K2_DATA_DIR "
            "or K2_ICEBERG_CATALOG_URI",
            table=str(table),
        )

    def _register(self, table: TableDef, metadata_location: str) -> None:
        try:
            self._catalog.create_namespace(NAMESPACE)
        except NamespaceAlreadyExistsError:
            log.debug("lake_namespace_present", namespace=NAMESPACE)
        self._catalog.register_table(table.identifier, metadata_location)

    def _check(self, table: TableDef, found: BackupList) -> None:
        """Every file of the restored snapshot is counted, and its rows are those backed up."""
        reader = LakeReader(self._catalog)
        rows = sum(file.rows for file in reader.files(reader.current(table)))
        if rows != found.rows and not reader.has_deletes(reader.current(table)):
            self._catalog.drop_table(table.identifier)
            raise LakeError(
                f"the restored {table} has {rows} rows instead of {found.rows}; it was taken out "
                f"of the catalog again. Restore an older backup (--at), there are: "
                f"{', '.join(self._store.names(table))}",
                table=str(table),
            )


class _Move:
    """The files of one backup on their way to `target`."""

    def __init__(
        self, store: BackupStore, table: TableDef, found: BackupList, target: str, io_: FileIO
    ) -> None:
        self._store = store
        self._table = table
        self._found = found
        self._target = target
        self._io = io_
        self._old = key_of(found.location).rstrip("/")
        self._moved = self._old != key_of(target).rstrip("/")
        #: Lengths of the manifests that were written anew, by path.
        self._lengths: dict[str, int] = {}

    def data(self) -> list[int]:
        """Copy what is not there yet; the sizes. Where the place is the same, metadata as well."""
        start = len(key_of(self._target)) + 1
        there = {one.key[start:]: one.bytes for one in listed(self._io, self._target)}
        wanted = [
            path
            for path, size in self._found.files.items()
            if there.get(path) != size and not (self._moved and _is_metadata(path))
        ]
        pairs = [(self._store.file(self._table, path), self._new(path)) for path in wanted]
        copied = list(copy_all(self._store.io, self._io, pairs))
        for path, size in zip(wanted, copied, strict=True):
            if size != self._found.files[path]:
                raise LakeError(
                    f"{self._store.file(self._table, path)} has {size} bytes instead of "
                    f"{self._found.files[path]}: the backup is damaged; restore another (--at)",
                    path=path,
                )
        return copied

    def metadata(self) -> str:
        """The metadata file that the catalog is to name."""
        if not self._moved:
            return self._new(self._found.metadata)
        document = msgspec.json.decode(self._read(self._found.metadata))
        for snapshot in document.get("snapshots", ()):
            snapshot["manifest-list"] = self._list(snapshot["manifest-list"])
        document["location"] = self._target
        # They lead to files of the old place.
        document |= {"metadata-log": [], "statistics": [], "partition-statistics": []}
        location = f"{self._target}/metadata/00000-{uuid.uuid4()}.metadata.json"
        write_bytes(self._io, location, msgspec.json.encode(document))
        return location

    def _list(self, location: str) -> str:
        path = self._relative(location)

        def move(record: dict[str, Any]) -> None:
            manifest = self._relative(record["manifest_path"])
            if manifest not in self._lengths:
                self._lengths[manifest] = self._rewrite(manifest, self._move_file)
            record["manifest_path"] = self._new(manifest)
            record["manifest_length"] = self._lengths[manifest]

        self._rewrite(path, move)
        return self._new(path)

    def _move_file(self, record: dict[str, Any]) -> None:
        data = record["data_file"]
        path = key_of(data["file_path"])
        # What a snapshot took out may lie anywhere; it is only a note of what was.
        if path.startswith(f"{self._old}/"):
            data["file_path"] = self._new(path.removeprefix(f"{self._old}/"))

    def _rewrite(self, path: str, change: Any) -> int:
        """An Avro file with its records changed, schema and header as they were; its length."""
        reader = fastavro.reader(io.BytesIO(self._read(path)))
        header = {k: v for k, v in reader.metadata.items() if k not in _AVRO_OWN}
        records = []
        for record in reader:
            change(record)
            records.append(record)
        out = io.BytesIO()
        fastavro.writer(out, reader.writer_schema, records, codec="deflate", metadata=header)
        content = out.getvalue()
        write_bytes(self._io, self._new(path), content)
        return len(content)

    def _read(self, path: str) -> bytes:
        location = self._store.file(self._table, path)
        try:
            with self._store.io.new_input(location).open() as stream:
                content: bytes = stream.read()
        except (OSError, pa.ArrowException) as exc:
            raise LakeError(
                f"{location} cannot be read ({type(exc).__name__}): the backup is damaged; restore "
                "another (--at)",
                path=path,
            ) from exc
        return content

    def _relative(self, location: str) -> str:
        return key_of(location).removeprefix(f"{self._old}/")

    def _new(self, path: str) -> str:
        return f"{self._target}/{path}"


def _is_metadata(path: str) -> bool:
    return path.startswith("metadata/")
