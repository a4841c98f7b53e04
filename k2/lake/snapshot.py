"""One snapshot as catalog updates: summary, vector, references, what expires with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pyiceberg.manifest import DataFile
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.refs import MAIN_BRANCH, SnapshotRefType
from pyiceberg.table.snapshots import Operation, Snapshot, Summary, update_snapshot_summaries
from pyiceberg.table.update import (
    AddSnapshotUpdate,
    AssertRefSnapshotId,
    AssertTableUUID,
    RemoveSnapshotsUpdate,
    SetSnapshotRefUpdate,
    TableRequirement,
    TableUpdate,
)

from k2.lake.vector import COMMIT_ID_KEY, SUMMARY_KEY, Vector

#: Tag on the newest snapshot that carries the vector: no engine expires what a tag names, and a
#: lost vector would make every row of the log look new.
VECTOR_TAG: Final = "k2-vector"


def head_of(metadata: TableMetadata) -> int | None:
    """Snapshot id of main, None for a table without snapshots."""
    ref = metadata.refs.get(MAIN_BRANCH)
    return None if ref is None else ref.snapshot_id


def new_snapshot(
    metadata: TableMetadata,
    snapshot_id: int,
    manifest_list: str,
    files: Sequence[DataFile],
    vector: Vector,
    commit_id: str,
    now_ms: int,
) -> Snapshot:
    """An append of `files` on top of main, carrying `vector`."""
    head = metadata.current_snapshot()
    added = {
        "added-data-files": len(files),
        "added-records": sum(file.record_count for file in files),
        "added-files-size": sum(file.file_size_in_bytes for file in files),
        "changed-partition-count": len({str(file.partition) for file in files}),
    }
    counts = {name: str(value) for name, value in added.items() if value}
    ours = {SUMMARY_KEY: vector.to_summary(), COMMIT_ID_KEY: commit_id}
    previous: Mapping[str, str] | None = None
    if head is not None and head.summary is not None:
        previous = head.summary
    return Snapshot(
        snapshot_id=snapshot_id,
        parent_snapshot_id=head_of(metadata),
        sequence_number=metadata.next_sequence_number(),
        # Clocks of workers differ; a table's history may not go back.
        timestamp_ms=max(now_ms, 0 if head is None else head.timestamp_ms),
        manifest_list=manifest_list,
        summary=update_snapshot_summaries(Summary(Operation.APPEND, **counts, **ours), previous),
        schema_id=metadata.current_schema_id,
    )


def requirements(metadata: TableMetadata) -> tuple[TableRequirement, ...]:
    """The commit lands only on exactly this table with main exactly here."""
    return (
        AssertRefSnapshotId(ref=MAIN_BRANCH, snapshot_id=head_of(metadata)),
        AssertTableUUID(uuid=metadata.table_uuid),
    )


def updates(snapshot: Snapshot, expired: Sequence[Snapshot]) -> tuple[TableUpdate, ...]:
    """Add the snapshot, move main and the vector's tag to it, drop what expired."""
    changes: list[TableUpdate] = [
        AddSnapshotUpdate(snapshot=snapshot),
        _ref(snapshot, MAIN_BRANCH, SnapshotRefType.BRANCH),
        _ref(snapshot, VECTOR_TAG, SnapshotRefType.TAG),
    ]
    if expired:
        ids = [one.snapshot_id for one in expired]
        changes.append(RemoveSnapshotsUpdate(snapshot_ids=ids))
    return tuple(changes)


def _ref(snapshot: Snapshot, name: str, kind: SnapshotRefType) -> SetSnapshotRefUpdate:
    return SetSnapshotRefUpdate(
        snapshot_id=snapshot.snapshot_id,
        ref_name=name,
        type=kind,
        max_ref_age_ms=None,
        max_snapshot_age_ms=None,
        min_snapshots_to_keep=None,
    )
