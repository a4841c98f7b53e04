"""Manifests of a commit: the new one, the list, and the merging that keeps the list short.

A commit adds one small manifest. Ten small ones become one medium, ten medium ones one sealed: each
entry is rewritten at most twice, and one commit rewrites ten manifests at most (with 16 files per
commit 1,600 entries, 0.15 s, every hundredth commit).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from typing import Final

from pyiceberg.io import FileIO
from pyiceberg.manifest import (
    DataFile,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestFile,
    write_manifest,
    write_manifest_list,
)
from pyiceberg.table.locations import load_location_provider
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Snapshot

FAN_IN: Final = 10
OWN_PREFIX: Final = "k2-"
#: Live entries from which a manifest is small no more, and from which it is left alone.
_MEDIUM: Final = 100
_SEALED: Final = 1_000
_CODEC: Final = "deflate"


def live_manifests(snapshot: Snapshot | None, io: FileIO) -> list[ManifestFile]:
    """The manifests of a snapshot that still name files."""
    if snapshot is None:
        return []
    return [
        manifest
        for manifest in snapshot.manifests(io)
        if manifest.has_added_files() or manifest.has_existing_files()
    ]


def metadata_path(metadata: TableMetadata, name: str) -> str:
    """Location of a metadata file of this name."""
    return load_location_provider(metadata.location, metadata.properties).new_metadata_location(
        name
    )


def own_name(stem: str) -> str:
    """A manifest's file name; the prefix tells K2's from another engine's, which K2 leaves be."""
    return f"{OWN_PREFIX}{stem}.avro"


def write_added(
    metadata: TableMetadata, io: FileIO, files: Sequence[DataFile], snapshot_id: int, path: str
) -> ManifestFile:
    """Write the manifest of a commit's new files.

    Its entries inherit their sequence number from the list, so it serves every attempt.
    """
    return write_entries(metadata, io, snapshot_id, path, added=files)


def mergeable(metadata: TableMetadata, manifests: Sequence[ManifestFile]) -> list[ManifestFile]:
    """The manifests to replace by one in this commit; empty when none are due."""
    tiers: dict[int, list[ManifestFile]] = {}
    for manifest in manifests:
        entries = (manifest.added_files_count or 0) + (manifest.existing_files_count or 0)
        ours = manifest.content == ManifestContent.DATA
        if ours and entries < _SEALED and manifest.partition_spec_id == metadata.default_spec_id:
            tiers.setdefault(0 if entries < _MEDIUM else 1, []).append(manifest)
    for tier in (0, 1):
        if len(tiers.get(tier, ())) >= FAN_IN:
            # The list has the newest first: merge the oldest, whose neighbours are merged already.
            return tiers[tier][-FAN_IN:]
    return []


def write_merged(
    metadata: TableMetadata,
    io: FileIO,
    manifests: Sequence[ManifestFile],
    snapshot_id: int,
    path: str,
) -> ManifestFile:
    """Write one manifest with the live entries of `manifests`."""
    entries = (
        entry
        for manifest in manifests
        for entry in manifest.fetch_manifest_entry(io, discard_deleted=True)
    )
    return write_entries(metadata, io, snapshot_id, path, kept=entries)


def write_entries(
    metadata: TableMetadata,
    io: FileIO,
    snapshot_id: int,
    path: str,
    *,
    kept: Iterable[ManifestEntry] = (),
    added: Iterable[DataFile] = (),
    gone: Iterable[ManifestEntry] = (),
) -> ManifestFile:
    """Write one manifest: files that stay, new ones, and those this snapshot takes out."""
    writer = write_manifest(
        2, metadata.spec(), metadata.schema(), io.new_output(path), snapshot_id, _CODEC
    )
    with writer:
        for entry in kept:
            writer.existing(entry)
        for file in added:
            writer.add_entry(_added_entry(file, snapshot_id))
        for entry in gone:
            writer.delete(entry)
    return writer.to_manifest_file()


def _added_entry(file: DataFile, snapshot_id: int) -> ManifestEntry:
    return ManifestEntry.from_args(
        status=ManifestEntryStatus.ADDED,
        snapshot_id=snapshot_id,
        sequence_number=None,
        file_sequence_number=None,
        data_file=file,
    )


def write_list(
    io: FileIO,
    manifests: Sequence[ManifestFile],
    snapshot_id: int,
    parent_id: int | None,
    sequence_number: int,
    path: str,
) -> None:
    """Write a manifest list; manifests of this commit get their sequence number."""
    with write_manifest_list(
        2, io.new_output(path), snapshot_id, parent_id, sequence_number, _CODEC
    ) as writer:
        writer.add_manifests([copy(manifest) for manifest in manifests])
