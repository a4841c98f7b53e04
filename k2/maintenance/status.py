"""The state of one table: what it is made of, and what maintenance would do."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pyiceberg.table.refs import MAIN_BRANCH

from k2.lake.manifests import live_manifests
from k2.lake.reader import LakeFile, LakeReader, Pinned
from k2.lake.snapshot import VECTOR_TAG
from k2.lake.tables import TableDef
from k2.maintenance.plan import CompactionPolicy, plan


@dataclass(frozen=True, slots=True)
class TableStatus:
    """`most_files`: live files of the fullest (day, bucket). `due_files`: to be compacted now."""

    table: str
    rows: int
    files: int
    bytes: int
    bytes_per_file: int
    most_files: int
    due_files: int
    manifests: int
    snapshots: int
    oldest_snapshot_ms: int | None
    tags: list[str]
    metadata_bytes: int
    plan_ms: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def status(reader: LakeReader, table: TableDef, policy: CompactionPolicy) -> TableStatus:
    """Measure one table; blocking. Raises `LakeError`."""
    pinned = reader.current(table)
    started_s = time.perf_counter()
    files = reader.files(pinned)
    plan_ms = (time.perf_counter() - started_s) * 1_000
    total = sum(file.bytes for file in files)
    metadata = pinned.metadata
    return TableStatus(
        table=str(table),
        rows=sum(file.rows for file in files),
        files=len(files),
        bytes=total,
        bytes_per_file=total // len(files) if files else 0,
        most_files=most_files(files),
        due_files=sum(len(group.files) for group in plan(files, policy)),
        manifests=len(live_manifests(pinned.snapshot, pinned.io)),
        snapshots=len(metadata.snapshots),
        oldest_snapshot_ms=min((one.timestamp_ms for one in metadata.snapshots), default=None),
        tags=sorted(set(metadata.refs) - {MAIN_BRANCH, VECTOR_TAG}),
        metadata_bytes=_metadata_bytes(pinned),
        plan_ms=round(plan_ms, 2),
    )


def most_files(files: Sequence[LakeFile]) -> int:
    """Live files of the fullest (day, bucket)."""
    counts = Counter((file.day, file.bucket) for file in files)
    return max(counts.values(), default=0)


def _metadata_bytes(pinned: Pinned) -> int:
    return len(pinned.io.new_input(pinned.metadata_location))
