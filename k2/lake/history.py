"""The chain of snapshots: who descends from whom, where its vector is, which may go.

PyIceberg and Java cut or leave dangling the parent of a snapshot whose parent was expired. Sequence
numbers rise along main, so the walk goes on at the next lower one that is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Operation, Snapshot

from k2.lake.vector import COMMIT_ID_KEY, SUMMARY_KEY, Vector

#: Operations that leave every row of before in the table; a replace (compaction) moves them.
_HARMLESS = (Operation.APPEND, Operation.REPLACE)
_MINUTE_MS = 60_000
_HOUR_MS = 60 * _MINUTE_MS
_DAY_MS = 24 * _HOUR_MS


def ancestors(metadata: TableMetadata, snapshot: Snapshot | None) -> Iterator[Snapshot]:
    """`snapshot` and what it descends from, newest first."""
    by_id = {one.snapshot_id: one for one in metadata.snapshots}
    while snapshot is not None:
        yield snapshot
        parent = by_id.get(snapshot.parent_snapshot_id or 0)
        snapshot = parent or _newest_before(metadata.snapshots, snapshot)


def _newest_before(snapshots: Iterable[Snapshot], snapshot: Snapshot) -> Snapshot | None:
    limit = snapshot.sequence_number or 0
    older = (one for one in snapshots if (one.sequence_number or 0) < limit)
    return max(older, key=lambda one: one.sequence_number or 0, default=None)


def vector_at(metadata: TableMetadata, snapshot: Snapshot | None) -> Vector:
    """The vector of the nearest ancestor that carries one; empty when none does."""
    for one in ancestors(metadata, snapshot):
        text = _summary(one, SUMMARY_KEY)
        if text is not None:
            return Vector.from_summary(text)
    return Vector.empty()


def only_grew(metadata: TableMetadata, head: Snapshot | None, since: int | None) -> bool:
    """True when every snapshot after `since` up to `head` only added rows or rearranged them."""
    for snapshot in ancestors(metadata, head):
        if snapshot.snapshot_id == since:
            return True
        if snapshot.summary is None or snapshot.summary.operation not in _HARMLESS:
            return False
    return since is None


def find_commit(metadata: TableMetadata, commit_id: str) -> Snapshot | None:
    """The snapshot of a commit id, wherever in the table: rolled back means it did land."""
    for snapshot in reversed(metadata.snapshots):
        if _summary(snapshot, COMMIT_ID_KEY) == commit_id:
            return snapshot
    return None


def _summary(snapshot: Snapshot, key: str) -> str | None:
    return None if snapshot.summary is None else snapshot.summary.get(key)


@dataclass(frozen=True, slots=True)
class Retention:
    """Which snapshots time travel keeps; everything else leaves the metadata.

    All of the last `all_ms` and always the newest `all_count`; then the last one of each minute for
    an hour, of each hour for two days, of each day for `days`. What a tag or branch names stays.
    The whole history of a table is rewritten at each commit, so its length is what a commit costs.
    """

    all_ms: int = 5 * _MINUTE_MS
    all_count: int = 100
    days: int = 90
    #: Most snapshots one commit removes, so that a long backlog is worked off in steps.
    batch: int = 100

    def expired(self, metadata: TableMetadata, now_ms: int) -> list[Snapshot]:
        """Snapshots that may go, oldest first, at most `batch`."""
        newest_first = sorted(
            metadata.snapshots, key=lambda one: one.sequence_number or 0, reverse=True
        )
        keep = {ref.snapshot_id for ref in metadata.refs.values()}
        seen: set[tuple[int, int]] = set()
        needs_vector = False
        for index, snapshot in enumerate(newest_first):
            slot = self._slot(now_ms - snapshot.timestamp_ms, snapshot.timestamp_ms)
            kept = snapshot.snapshot_id in keep or index < self.all_count
            kept = kept or (slot is not None and (slot[0] == 0 or slot not in seen))
            if slot is not None:
                seen.add(slot)
            carries = _summary(snapshot, SUMMARY_KEY) is not None
            # A kept snapshot without a vector needs the nearest one below it.
            kept = kept or (needs_vector and carries)
            if kept:
                needs_vector = not carries
                keep.add(snapshot.snapshot_id)
        gone = [one for one in reversed(newest_first) if one.snapshot_id not in keep]
        return gone[: self.batch]

    def _slot(self, age_ms: int, at_ms: int) -> tuple[int, int] | None:
        """Class and slot of a snapshot; one is kept per slot, but every one of class 0."""
        if age_ms <= self.all_ms:
            return (0, 0)
        for size, limit in (
            (_MINUTE_MS, _HOUR_MS),
            (_HOUR_MS, 2 * _DAY_MS),
            (_DAY_MS, self.days * _DAY_MS),
        ):
            if age_ms <= limit:
                return (size, at_ms // size)
        return None
