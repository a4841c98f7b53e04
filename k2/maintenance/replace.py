"""Changes of a table that carry its vector on: replace files, rewrite manifests, roll back.

Each is put on whatever main is when it commits, so the sink's appends go on meanwhile; a change
whose files are no longer all in the table is refused and its own files are deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeVar

import msgspec
from pyiceberg.conversions import from_bytes
from pyiceberg.io import FileIO
from pyiceberg.manifest import DataFile, ManifestContent, ManifestEntry, ManifestFile
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Operation, Snapshot
from pyiceberg.types import IntegerType

from k2.errors import LakeError, SupersededError
from k2.lake.commit import Attempt, Change, Contents
from k2.lake.history import vector_at
from k2.lake.manifests import live_manifests, metadata_path, own_name, write_entries
from k2.lake.snapshot import counts_of
from k2.lake.tables import TableDef, verify

T = TypeVar("T")
#: Entries per rewritten manifest: about 200 kB, so that planning one day reads little else.
_ENTRIES: Final = 1_000

#: Begin of the name of the notes that say which data files a commit took out.
REMOVED_PREFIX: Final = "k2-removed-"


class ReplaceFiles(Change):
    """`added` takes the place of the files at `removed` (path -> day).

    The rows stay the same (`REPLACE`), change or get fewer (`OVERWRITE`), or go (`DELETE`, nothing
    added). Raises `SupersededError` when one of the removed is not in the table any more.
    """

    def __init__(
        self,
        table: TableDef,
        added: Sequence[DataFile],
        removed: Mapping[str, int | None],
        operation: Operation = Operation.REPLACE,
    ) -> None:
        super().__init__()
        self.operation = operation
        self._table = table
        self._added = list(added)
        self._removed = removed
        self._days = set(removed.values())
        self._entries: dict[str, list[ManifestEntry]] = {}
        self._touched: dict[frozenset[str], tuple[list[ManifestFile], list[DataFile]]] = {}
        self._paths: list[str] = []

    def check(self, loaded: Table) -> None:
        verify(self._table, loaded.metadata)

    def prepare(self, loaded: Table) -> None:
        """Note what is taken out, for the sweep to delete it once no snapshot needs it."""
        path = metadata_path(loaded.metadata, f"{REMOVED_PREFIX}{self.commit_id}.json")
        self._paths = [path]
        with loaded.io.new_output(path).create(overwrite=True) as stream:
            stream.write(msgspec.json.encode(sorted(self._removed)))

    def build(self, loaded: Table, attempt: Attempt) -> Contents:
        metadata, io = loaded.metadata, loaded.io
        head = metadata.current_snapshot()
        existing = live_manifests(head, io)
        refuse_deletes(self._table, existing)
        touched = [one for one in existing if self._touches(one, io)]
        ours, removed = self._rewritten(metadata, io, touched)
        replaced = {one.manifest_path for one in touched}
        left = [one for one in existing if one.manifest_path not in replaced]
        return Contents([*ours, *left], vector_at(metadata, head), counts_of(self._added, removed))

    def written(self) -> list[str]:
        return [*(file.file_path for file in self._added), *self._paths]

    def _touches(self, manifest: ManifestFile, io: FileIO) -> bool:
        if not may_hold_days(manifest, self._days):
            return False
        entries = self._entries.get(manifest.manifest_path)
        if entries is None:
            entries = manifest.fetch_manifest_entry(io, discard_deleted=True)
            self._entries[manifest.manifest_path] = entries
        return any(entry.data_file.file_path in self._removed for entry in entries)

    def _rewritten(
        self, metadata: TableMetadata, io: FileIO, touched: Sequence[ManifestFile]
    ) -> tuple[list[ManifestFile], list[DataFile]]:
        """Manifests in place of `touched`; the same ones as long as `touched` is the same."""
        key = frozenset(one.manifest_path for one in touched)
        if key in self._touched:
            return self._touched[key]
        entries = [entry for one in touched for entry in self._entries[one.manifest_path]]
        gone = [entry for entry in entries if entry.data_file.file_path in self._removed]
        if len(gone) != len(self._removed):
            raise SupersededError(
                f"{len(self._removed) - len(gone)} of {len(self._removed)} files to replace are no "
                f"longer in {self._table}: another change was first; nothing was changed",
                table=str(self._table),
            )
        kept = [entry for entry in entries if entry.data_file.file_path not in self._removed]
        name = f"{self.commit_id}-r{len(self._touched)}"
        written: list[ManifestFile] = []
        for number, part in enumerate(_batched(kept, _ENTRIES)):
            written.append(self._write(metadata, io, f"{name}-k{number}", kept=part))
        written.append(self._write(metadata, io, f"{name}-x", added=self._added, gone=gone))
        result = (written, [entry.data_file for entry in gone])
        self._touched[key] = result
        return result

    def _write(
        self,
        metadata: TableMetadata,
        io: FileIO,
        stem: str,
        *,
        kept: Iterable[ManifestEntry] = (),
        added: Iterable[DataFile] = (),
        gone: Iterable[ManifestEntry] = (),
    ) -> ManifestFile:
        path = metadata_path(metadata, own_name(stem))
        self._paths.append(path)
        return write_entries(
            metadata, io, self.snapshot_id, path, kept=kept, added=added, gone=gone
        )


class RewriteManifests(Change):
    """The same files in few manifests ordered by day and bucket, so that planning reads few."""

    operation = Operation.REPLACE

    def __init__(self, table: TableDef) -> None:
        super().__init__()
        self._table = table

    def check(self, loaded: Table) -> None:
        """Any table will do."""

    def prepare(self, loaded: Table) -> None:
        """Everything depends on what main has."""

    def build(self, loaded: Table, attempt: Attempt) -> Contents:
        metadata, io = loaded.metadata, loaded.io
        head = metadata.current_snapshot()
        existing = live_manifests(head, io)
        ours = [one for one in existing if _is_ours(one, metadata)]
        others = [one for one in existing if not _is_ours(one, metadata)]
        entries = [
            entry for one in ours for entry in one.fetch_manifest_entry(io, discard_deleted=True)
        ]
        entries.sort(key=lambda entry: (entry.data_file.partition[0], entry.data_file.partition[1]))
        listed = []
        # Newest first, as appends list them.
        for number, part in enumerate(reversed(list(_batched(entries, _ENTRIES)))):
            stem = f"{self.commit_id}-w{attempt.number}-{number}"
            path = metadata_path(metadata, own_name(stem))
            attempt.paths.append(path)
            listed.append(write_entries(metadata, io, self.snapshot_id, path, kept=part))
        return Contents([*listed, *others], vector_at(metadata, head), counts_of(()))

    def written(self) -> list[str]:
        return []


class Rollback(Change):
    """The files of an older snapshot, with the vector of now: what is rolled back stays gone."""

    operation = Operation.OVERWRITE

    def __init__(self, table: TableDef, target: Snapshot) -> None:
        super().__init__()
        self._table = table
        self._target = target
        self.totals_of = target

    def check(self, loaded: Table) -> None:
        if loaded.metadata.snapshot_by_id(self._target.snapshot_id) is None:
            raise LakeError(
                f"table {self._table} has no snapshot {self._target.snapshot_id}; it has expired. "
                "`k2 lake status` lists what is left",
                table=str(self._table),
                snapshot_id=self._target.snapshot_id,
            )

    def prepare(self, loaded: Table) -> None:
        """Nothing is written but the manifest list."""

    def build(self, loaded: Table, attempt: Attempt) -> Contents:
        metadata = loaded.metadata
        vector = vector_at(metadata, metadata.current_snapshot())
        return Contents(live_manifests(self._target, loaded.io), vector, {})

    def written(self) -> list[str]:
        return []


def _batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _is_ours(manifest: ManifestFile, metadata: TableMetadata) -> bool:
    return (
        manifest.content == ManifestContent.DATA
        and manifest.partition_spec_id == metadata.default_spec_id
    )


def may_hold_days(manifest: ManifestFile, days: set[int | None]) -> bool:
    """False when the manifest's own summary says it has no file of these days."""
    if not manifest.partitions or None in days:
        return True
    first = manifest.partitions[0]
    if first.lower_bound is None or first.upper_bound is None:
        return True
    low = int(from_bytes(IntegerType(), first.lower_bound))
    high = int(from_bytes(IntegerType(), first.upper_bound))
    return any(low <= day <= high for day in days if day is not None)


def refuse_deletes(table: TableDef, existing: Iterable[ManifestFile]) -> None:
    """Raise `LakeError` when the snapshot has delete files, which belong to certain data files."""
    if any(one.content == ManifestContent.DELETES for one in existing):
        raise LakeError(
            f"table {table} has delete files of another engine; let that engine rewrite its data "
            "files first (Trino: ALTER TABLE … EXECUTE optimize)",
            table=str(table),
        )
