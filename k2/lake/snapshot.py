"""One snapshot as catalog updates: summary, vector, references, what expires with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pyiceberg.manifest import DataFile
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.refs import MAIN_BRANCH, SnapshotRefType
from pyiceberg.table.snapshots import Operation, Snapshot, Summary
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


#: Summary total -> what adds to it and what takes away.
_TOTALS: Final = {
    "total-data-files": ("added-data-files", "deleted-data-files"),
    "total-records": ("added-records", "deleted-records"),
    "total-files-size": ("added-files-size", "removed-files-size"),
}
_OTHER_TOTALS: Final = ("total-delete-files", "total-position-deletes", "total-equality-deletes")


def counts_of(added: Sequence[DataFile], removed: Sequence[DataFile] = ()) -> dict[str, int]:
    """Summary counts of files that come and go."""
    counts = {
        "added-data-files": len(added),
        "added-records": sum(file.record_count for file in added),
        "added-files-size": sum(file.file_size_in_bytes for file in added),
        "deleted-data-files": len(removed),
        "deleted-records": sum(file.record_count for file in removed),
        "removed-files-size": sum(file.file_size_in_bytes for file in removed),
        "changed-partition-count": len({str(file.partition) for file in (*added, *removed)}),
    }
    return {name: value for name, value in counts.items() if value}


def new_snapshot(
    metadata: TableMetadata,
    snapshot_id: int,
    manifest_list: str,
    operation: Operation,
    counts: Mapping[str, int],
    vector: Vector,
    commit_id: str,
    now_ms: int,
    *,
    totals_of: Snapshot | None = None,
    notes: Mapping[str, str] | None = None,
) -> Snapshot:
    """A snapshot on top of main, carrying `vector`; totals go on from `totals_of`, else main's.

    `notes`: more for the summary.
    """
    head = metadata.current_snapshot()
    ours = {**(notes or {}), SUMMARY_KEY: vector.to_summary(), COMMIT_ID_KEY: commit_id}
    changed = {name: str(value) for name, value in counts.items()}
    summary = Summary(operation, **changed, **_totals(counts, totals_of or head), **ours)
    return Snapshot(
        snapshot_id=snapshot_id,
        parent_snapshot_id=head_of(metadata),
        sequence_number=metadata.next_sequence_number(),
        # Clocks of workers differ; a table's history may not go back.
        timestamp_ms=max(now_ms, 0 if head is None else head.timestamp_ms),
        manifest_list=manifest_list,
        summary=summary,
        schema_id=metadata.current_schema_id,
    )


def _totals(counts: Mapping[str, int], before: Snapshot | None) -> dict[str, str]:
    """The summary's totals; one that other engines left out stays out."""
    known: Mapping[str, str] = {}
    if before is not None and before.summary is not None:
        known = before.summary
    totals: dict[str, str] = {}
    for name, (plus, minus) in _TOTALS.items():
        old = "0" if before is None else known.get(name)
        if old is not None and old.isdigit():
            totals[name] = str(int(old) + counts.get(plus, 0) - counts.get(minus, 0))
    for name in _OTHER_TOTALS:
        old = "0" if before is None else known.get(name)
        if old is not None:
            totals[name] = old
    return totals


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
