"""Commit rows and the vector in one snapshot, exactly once.

Data files and their manifest are written once; `CommitLoop` redoes only the manifest list.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.manifest import DataFile, ManifestFile
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Operation

from k2.clock import SYSTEM_CLOCK, Clock
from k2.errors import LakeError, StaleBasisError, StaleWriterError
from k2.faultpoints import Point, reached
from k2.lake import manifests
from k2.lake.commit import Attempt, Change, CommitLoop, Contents, Watch, unwatched
from k2.lake.files import write_files
from k2.lake.history import Retention, only_grew, vector_at
from k2.lake.snapshot import counts_of
from k2.lake.tables import TableDef, verify
from k2.lake.vector import Place, Position, Vector

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CommitResult:
    """A commit that is in the table. `seconds` counts writing the files and all attempts."""

    snapshot_id: int
    metadata: TableMetadata
    metadata_location: str
    vector: Vector
    seconds: float
    files: int
    rows: int
    bytes: int
    attempts: int


@dataclass(frozen=True, slots=True)
class Basis:
    """What rows were made from, beside the log: the table's own rows of some partitions.

    Such rows may only be put on top of the same: nothing of these partitions may have been stored
    since, and nothing taken out.
    """

    snapshot_id: int | None
    vector: Vector
    partitions: frozenset[int]

    def holds(self, metadata: TableMetadata) -> bool:
        """True when the table's head still has what this was read from, and nothing newer."""
        head = metadata.current_snapshot()
        if not only_grew(metadata, head, self.snapshot_id):
            return False
        return vector_at(metadata, head).of(self.partitions) == self.vector.of(self.partitions)


class _Append(Change):
    """Rows and the positions they lead to."""

    def __init__(
        self,
        table: TableDef,
        rows: pa.Table | None,
        base: Mapping[Place, Position | None],
        positions: Mapping[Place, Position],
        executor: Executor,
        basis: Basis | None = None,
    ) -> None:
        super().__init__()
        self._basis = basis
        self._table = table
        self._rows = rows
        self._base = base
        self._positions = positions
        self._executor = executor
        self._verified_schema: int | None = None
        self._added: ManifestFile | None = None
        self._added_path: str | None = None
        self.files: list[DataFile] = []

    def check(self, loaded: Table) -> None:
        """Compare our places with exactly the metadata the attempt will build on."""
        metadata = loaded.metadata
        if metadata.current_schema_id != self._verified_schema:
            verify(self._table, metadata)
            self._verified_schema = metadata.current_schema_id
        vector = vector_at(metadata, metadata.current_snapshot())
        for place, expected in self._base.items():
            found = vector.get(place)
            if found != expected:
                raise StaleWriterError(
                    f"table {self._table} is at {found} for {place}, but the rows start from "
                    f"{expected}: another worker writes this partition now; drop the rows and "
                    "start again from the table's vector",
                    table=str(self._table),
                    place=tuple(place),
                    expected=expected,
                    found=found,
                )
        if self._basis is not None and not self._basis.holds(metadata):
            raise StaleBasisError(
                f"table {self._table}: rows that these were made from have changed meanwhile; make "
                "them again",
                table=str(self._table),
            )

    def prepare(self, loaded: Table) -> None:
        if self._rows is None or self._rows.num_rows == 0:
            return
        reached(Point.BEFORE_PARQUET)
        metadata, io = loaded.metadata, loaded.io
        self.files = self.files or write_files(
            self._table, metadata, io, self._rows, self._executor
        )
        reached(Point.AFTER_PARQUET)
        self._added_path = manifests.metadata_path(
            metadata, manifests.own_name(f"{self.commit_id}-m0")
        )
        self._added = manifests.write_added(
            metadata, io, self.files, self.snapshot_id, self._added_path
        )

    def build(self, loaded: Table, attempt: Attempt) -> Contents:
        """The new manifest first; old ones are merged only in the first attempt."""
        metadata, io = loaded.metadata, loaded.io
        head = metadata.current_snapshot()
        existing = manifests.live_manifests(head, io)
        due = manifests.mergeable(metadata, existing) if attempt.number == 1 else []
        if due:
            path = manifests.metadata_path(metadata, manifests.own_name(f"{self.commit_id}-m1"))
            attempt.paths.append(path)
            merged = manifests.write_merged(metadata, io, due, self.snapshot_id, path)
            replaced = {manifest.manifest_path for manifest in due}
            existing = [one for one in existing if one.manifest_path not in replaced]
            existing.append(merged)
        listed = existing if self._added is None else [self._added, *existing]
        return Contents(
            listed, vector_at(metadata, head).advanced(self._positions), counts_of(self.files)
        )

    def written(self) -> list[str]:
        paths = [file.file_path for file in self.files]
        return [*paths, self._added_path] if self._added_path else paths


class LakeWriter:
    """The one writer of a table in this process; blocking, so call it in a thread.

    Exactly once: rows and positions become visible together, and only on top of the positions the
    rows start from. `wait` and `clock` are injected for tests.
    """

    def __init__(
        self,
        catalog: Catalog,
        table: TableDef,
        *,
        retry_s: float = 60.0,
        retention: Retention | None = None,
        clock: Clock = SYSTEM_CLOCK,
        wait: Callable[[float], object] | None = None,
        executor: Executor | None = None,
        watch: Watch = unwatched,
    ) -> None:
        self.table = table
        self._loop = CommitLoop(
            catalog,
            table,
            retry_s=retry_s,
            retention=retention,
            clock=clock,
            wait=wait,
            watch=watch,
        )
        self._executor = executor or ThreadPoolExecutor(2, thread_name_prefix="k2-lake")
        self._lock = threading.Lock()

    def vector(self) -> Vector:
        """The table's vector now, from the catalog. Raises `LakeError` when it does not answer."""
        metadata = self._loop.load().metadata
        return vector_at(metadata, metadata.current_snapshot())

    def commit(
        self,
        rows: pa.Table | None,
        base: Mapping[Place, Position | None],
        positions: Mapping[Place, Position],
        *,
        basis: Basis | None = None,
        operation: Operation = Operation.APPEND,
    ) -> CommitResult:
        """Append `rows` and advance the vector from `base` to `positions`; both name our places.

        Without rows only the vector moves. Raises `StaleWriterError` when the table is not at
        `base` for one of the places, `StaleBasisError` when `basis` does not hold any more, else as
        `CommitLoop.run` does: after an unknown outcome `vector()` tells. `operation`: OVERWRITE for
        rows that correct others, which makes whoever remembers the others look again.
        """
        if base.keys() != positions.keys():
            raise LakeError(f"commit to {self.table}: base and positions must name the same places")
        with self._lock:
            change = _Append(self.table, rows, base, positions, self._executor, basis)
            change.operation = operation
            landed = self._loop.run(change)
            return CommitResult(
                landed.snapshot.snapshot_id,
                landed.metadata,
                landed.metadata_location,
                vector_at(landed.metadata, landed.snapshot),
                landed.seconds,
                len(change.files),
                0 if rows is None else rows.num_rows,
                sum(file.file_size_in_bytes for file in change.files),
                landed.attempts,
            )

    def outlast(self, look: Callable[[], T]) -> T:
        """See `CommitLoop.outlast`."""
        return self._loop.outlast(look)

    def give_up(self) -> None:
        """Try nothing again; what is under way may still land."""
        self._loop.give_up()

    def close(self) -> None:
        """Let go of the threads."""
        self.give_up()
        self._executor.shutdown(wait=False)
