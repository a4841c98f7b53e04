"""Copies of the lake elsewhere, and a lake from such a copy.

A backup is one list of files per table; files are immutable, so a backup copies only those no
earlier one has. A restored table may lie elsewhere: then its manifests are written anew with the
new paths. Its snapshots carry the vector, so the sink goes on where the backup was, and what the
log still has is read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import pyarrow as pa
import structlog
from pyiceberg.catalog import Catalog
from pyiceberg.io import FileIO, load_file_io
from pyiceberg.table import Table

from k2.clock import SYSTEM_CLOCK, Clock
from k2.errors import LakeError
from k2.lake.files import delete_files
from k2.lake.tables import NAMESPACE, TableDef
from k2.maintenance.reach import Reach, key_of, listed

log = structlog.get_logger(__name__)

_CHUNK_BYTES: Final = 8 * 1024 * 1024
_THREADS: Final = 8
_LISTS: Final = "backups"
_FILES: Final = "files"


class BackupList(msgspec.Struct, frozen=True):
    """One backup of one table. `files`: path below the table's location -> bytes."""

    table: str
    name: str
    location: str
    metadata: str
    snapshot_id: int | None
    rows: int
    files: dict[str, int]


@dataclass(frozen=True, slots=True)
class BackedUp:
    """What a backup did. `files`, `bytes`: all it stands for; `copied…`: what was new."""

    table: str
    name: str
    rows: int
    files: int
    bytes: int
    copied_files: int
    copied_bytes: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": round(self.seconds, 3)}


class BackupStore:
    """A directory or an S3 prefix with backups; blocking. Raises `LakeError`."""

    def __init__(self, location: str, properties: dict[str, str]) -> None:
        self.location = location.rstrip("/")
        self.io: FileIO = load_file_io(properties, self.location)

    def names(self, table: TableDef) -> list[str]:
        """Backups of a table, the oldest first."""
        found = listed(self.io, f"{self._folder(table)}/{_LISTS}", recursive=False)
        names = (one.key.rpartition("/")[2] for one in found)
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))

    def read(self, table: TableDef, name: str | None = None) -> BackupList:
        """A backup by name; None: the newest."""
        names = self.names(table)
        chosen = name or (names[-1] if names else "")
        if chosen not in names:
            there = ", ".join(names[-5:]) or "(none)"
            raise LakeError(
                f"{self.location} has no backup {chosen or 'at all'} of {table}; there are: "
                f"{there}",
                table=str(table),
            )
        with self.io.new_input(self._list(table, chosen)).open() as stream:
            return msgspec.json.decode(stream.read(), type=BackupList)

    def write(self, table: TableDef, found: BackupList) -> None:
        """The list comes last: until then the backup does not exist."""
        write_bytes(self.io, self._list(table, found.name), msgspec.json.encode(found))

    def sound(self, table: TableDef) -> dict[str, int]:
        """Files of finished backups that are still as they were written, with their size.

        What a backup that was cut off left behind may be half a file: it is copied again.
        """
        listed_: dict[str, int] = {}
        for name in self.names(table):
            listed_ |= self.read(table, name).files
        return {path: size for path, size in self.held(table).items() if listed_.get(path) == size}

    def held(self, table: TableDef) -> dict[str, int]:
        """All files of the table there are, by path, with their size."""
        folder = f"{self._folder(table)}/{_FILES}"
        start = len(key_of(folder)) + 1
        return {one.key[start:]: one.bytes for one in listed(self.io, folder)}

    def file(self, table: TableDef, path: str) -> str:
        return f"{self._folder(table)}/{_FILES}/{path}"

    def prune(self, table: TableDef, keep: int) -> int:
        """Forget all but the newest `keep` backups and the files only they used; how many files."""
        names = self.names(table)
        kept = {path for name in names[-keep:] for path in self.read(table, name).files}
        delete_files(self.io, [self._list(table, name) for name in names[:-keep]])
        gone = [path for path in self.held(table) if path not in kept]
        left = delete_files(self.io, [self.file(table, path) for path in gone])
        return len(gone) - len(left)

    def _folder(self, table: TableDef) -> str:
        return f"{self.location}/{NAMESPACE}/{table.name}"

    def _list(self, table: TableDef, name: str) -> str:
        return f"{self._folder(table)}/{_LISTS}/{name}.json"


class Backup:
    """Backs up one table; blocking."""

    def __init__(
        self, catalog: Catalog, store: BackupStore, *, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._clock = clock

    def run(self, table: TableDef) -> BackedUp:
        """Copy what the table's snapshots need and no backup has yet. Raises `LakeError`.

        Beside running workers: a file that expired meanwhile ends it with an error, and the next
        try begins with what is there then.
        """
        started_s = self._clock.monotonic_s()
        loaded = self._catalog.load_table(table.identifier)
        paths = _paths(loaded)
        held = self._store.sound(table)
        new = [path for path in paths if path not in held]
        copies = [(_below(loaded, path), self._store.file(table, path)) for path in new]
        copied = dict(zip(new, copy_all(loaded.io, self._store.io, copies), strict=True))
        sizes = {path: copied[path] if path in copied else held[path] for path in paths}
        found = BackupList(
            table=table.name,
            name=_name(self._clock.now_us()),
            location=loaded.location(),
            metadata=_relative(loaded, loaded.metadata_location),
            snapshot_id=loaded.metadata.current_snapshot_id,
            rows=_rows(loaded),
            files=sizes,
        )
        self._store.write(table, found)
        return BackedUp(
            str(table),
            found.name,
            found.rows,
            len(sizes),
            sum(sizes.values()),
            len(copied),
            sum(copied.values()),
            self._clock.monotonic_s() - started_s,
        )


def _paths(loaded: Table) -> list[str]:
    """Everything the table's metadata needs, by path below its location.

    Metadata files of before are left out: they lead to nothing the present one does not have.
    """
    metadata = loaded.metadata
    before = {key_of(entry.metadata_file) for entry in metadata.metadata_log}
    keys = Reach().keys(loaded) - before
    return sorted(_relative(loaded, key) for key in keys)


def _relative(loaded: Table, location: str) -> str:
    base, key = f"{key_of(loaded.location()).rstrip('/')}/", key_of(location)
    if not key.startswith(base):
        raise LakeError(
            f"{location} of {loaded.name()} lies outside the table's location {base}: such a file "
            "cannot be backed up; let `k2 lake compact` or the engine that wrote it rewrite it",
            location=location,
        )
    return key.removeprefix(base)


def _below(loaded: Table, path: str) -> str:
    return f"{loaded.location().rstrip('/')}/{path}"


def _rows(loaded: Table) -> int:
    snapshot = loaded.current_snapshot()
    if snapshot is None or snapshot.summary is None:
        return 0
    return int(snapshot.summary.get("total-records") or 0)


def _name(now_us: int) -> str:
    return datetime.fromtimestamp(now_us / 1e6, UTC).strftime("%Y-%m-%dT%H-%M-%S-%f")


def copy_all(source: FileIO, target: FileIO, pairs: Sequence[tuple[str, str]]) -> Iterable[int]:
    """Copy files, several at a time; their sizes. Raises `LakeError` naming one that failed."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="k2-copy") as pool:
        return list(pool.map(lambda pair: _copy(source, target, *pair), pairs))


def _copy(source: FileIO, target: FileIO, old: str, new: str) -> int:
    try:
        size = 0
        with (
            source.new_input(old).open() as reading,
            target.new_output(new).create(overwrite=True) as writing,
        ):
            while chunk := reading.read(_CHUNK_BYTES):
                writing.write(chunk)
                size += len(chunk)
    except (OSError, pa.ArrowException) as exc:
        raise LakeError(
            f"{old} could not be copied to {new} ({type(exc).__name__}: {str(exc)[:200]}); this "
            "backup or restore does not count, so try again",
            location=old,
        ) from exc
    return size


def write_bytes(io: FileIO, location: str, content: bytes) -> None:
    """Write a small file."""
    with io.new_output(location).create(overwrite=True) as stream:
        stream.write(content)
