"""Commit rows and the vector in one snapshot, exactly once.

Our own loop instead of PyIceberg's: its automatic retry would append a batch again that another
writer has already superseded, and its clean-up deletes the files of a commit that did land but was
answered with a conflict. Data files and their manifest are written once; an attempt redoes only the
manifest list. An unknown outcome is decided by looking for our commit in the reloaded table.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, TypeVar

import pyarrow as pa
import structlog
from pydantic import ValidationError
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import (
    BadRequestError,
    CommitFailedException,
    ForbiddenError,
    NoSuchTableError,
    RESTError,
    UnauthorizedError,
)
from pyiceberg.io import FileIO
from pyiceberg.manifest import DataFile, ManifestFile
from pyiceberg.table import CommitTableResponse, Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Snapshot
from requests.exceptions import RequestException
from sqlalchemy.exc import SQLAlchemyError

from k2.clock import SYSTEM_CLOCK, Clock
from k2.errors import CommitConflictError, LakeError, StaleWriterError
from k2.lake import manifests
from k2.lake.files import delete_files, write_files
from k2.lake.history import Retention, find_commit, vector_at
from k2.lake.snapshot import head_of, new_snapshot, requirements, updates
from k2.lake.tables import TableDef, verify
from k2.lake.vector import Place, Position, Vector

log = structlog.get_logger(__name__)

#: The request was understood and refused; trying again cannot help.
_REFUSED: Final = (BadRequestError, UnauthorizedError, ForbiddenError, NoSuchTableError)
#: Nothing is known about the outcome: no answer, a broken one, or an error of the server. A broken
#: answer is pydantic's ValidationError.
_UNKNOWN: Final = (
    RESTError,
    RequestException,
    SQLAlchemyError,
    OSError,
    pa.ArrowException,
    ValidationError,
)
T = TypeVar("T")
_FIRST_WAIT_S: Final = 0.05
_LONGEST_WAIT_S: Final = 3.0


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


@dataclass(slots=True)
class _Attempt:
    """What one attempt built on and wrote. `unknown`: it may still land while main is at `base`."""

    base: int | None
    paths: list[str]
    unknown: bool = False


@dataclass(slots=True)
class _Commit:
    """One commit on its way through its attempts."""

    rows: pa.Table | None
    base: Mapping[Place, Position | None]
    positions: Mapping[Place, Position]
    deadline_s: float
    snapshot_id: int
    commit_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    files: list[DataFile] = field(default_factory=list)
    added: ManifestFile | None = None
    added_path: str | None = None
    attempts: list[_Attempt] = field(default_factory=list)


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
        wait: Callable[[float], None] = time.sleep,
        executor: Executor | None = None,
    ) -> None:
        self.table = table
        self._catalog = catalog
        self._retry_s = retry_s
        self._retention = retention or Retention()
        self._clock = clock
        self._wait = wait
        self._executor = executor or ThreadPoolExecutor(2, thread_name_prefix="k2-lake")
        self._lock = threading.Lock()
        self._verified_schema: int | None = None

    def vector(self) -> Vector:
        """The table's vector now, from the catalog. Raises `LakeError` when it does not answer."""
        loaded = self._persist(self._load, self._clock.monotonic_s() + self._retry_s)
        return vector_at(loaded.metadata, loaded.metadata.current_snapshot())

    def commit(
        self,
        rows: pa.Table | None,
        base: Mapping[Place, Position | None],
        positions: Mapping[Place, Position],
    ) -> CommitResult:
        """Append `rows` and advance the vector from `base` to `positions`; both name our places.

        Without rows only the vector moves. Raises `StaleWriterError` when the table is not at
        `base` for one of the places, `CommitConflictError` when others were faster until the retry
        time was over, `LakeError` when the catalog or the store refused or did not answer. The
        error's `details["outcome"]` is "absent" when nothing of this commit is or ever will be in
        the table, else "unknown": then `vector()` tells, and the files stay.
        """
        if base.keys() != positions.keys():
            raise LakeError(f"commit to {self.table}: base and positions must name the same places")
        with self._lock:
            started_s = self._clock.monotonic_s()
            commit = _Commit(
                rows, base, positions, started_s + self._retry_s, snapshot_id=_new_snapshot_id()
            )
            try:
                snapshot, landed = self._run(commit)
            except LakeError as exc:
                exc.details["outcome"] = "absent" if self._give_up(commit) else "unknown"
                raise
            return CommitResult(
                snapshot.snapshot_id,
                landed.metadata,
                landed.metadata_location,
                vector_at(landed.metadata, snapshot),
                self._clock.monotonic_s() - started_s,
                len(commit.files),
                0 if rows is None else rows.num_rows,
                sum(file.file_size_in_bytes for file in commit.files),
                max(1, len(commit.attempts)),
            )

    def close(self) -> None:
        """Let go of the threads."""
        self._executor.shutdown(wait=False)

    def _run(self, commit: _Commit) -> tuple[Snapshot, Table | CommitTableResponse]:
        loaded = self._persist(self._load, commit.deadline_s)
        self._check(commit, loaded)
        self._persist(lambda: self._write(commit, loaded), commit.deadline_s)
        while True:
            try:
                self._check(commit, loaded)
                return self._attempt(commit, loaded)
            except CommitFailedException as exc:
                conflict: Exception = exc
            except _REFUSED as exc:
                raise self._error(exc, "refused the commit") from exc
            except _UNKNOWN as exc:
                conflict = exc
                if commit.attempts:
                    commit.attempts[-1].unknown = True
            loaded = self._again(commit, conflict)
            found = find_commit(loaded.metadata, commit.commit_id)
            if found is not None:
                log.info("lake_commit_found", table=str(self.table), commit_id=commit.commit_id)
                self._tidy(commit, found, loaded.io)
                return found, loaded

    def _again(self, commit: _Commit, cause: Exception) -> Table:
        """Wait, then load the table anew. Raises when the time is over."""
        conflict = isinstance(cause, CommitFailedException)
        log.warning(
            "lake_commit_retry",
            table=str(self.table),
            attempt=len(commit.attempts),
            conflict=conflict,
            error=type(cause).__name__,
        )
        if self._clock.monotonic_s() < commit.deadline_s:
            self._wait(_pause_s(len(commit.attempts)))
            return self._persist(self._load, commit.deadline_s)
        # One last look, for the attempt whose time ran out may have landed.
        loaded = self._load_or_none()
        if loaded is not None and find_commit(loaded.metadata, commit.commit_id) is not None:
            return loaded
        if conflict:
            raise CommitConflictError(
                f"commit to {self.table}: other writers were faster for {self._retry_s} s in "
                f"{len(commit.attempts)} attempts; raise K2_ICEBERG_COMMIT_RETRY_S or run fewer "
                "sinks",
                table=str(self.table),
                attempts=len(commit.attempts),
            ) from cause
        raise self._error(cause, "did not answer") from cause

    def _check(self, commit: _Commit, loaded: Table) -> None:
        """Compare our places with exactly the metadata the attempt will build on."""
        metadata = loaded.metadata
        if metadata.current_schema_id != self._verified_schema:
            verify(self.table, metadata)
            self._verified_schema = metadata.current_schema_id
        vector = vector_at(metadata, metadata.current_snapshot())
        for place, expected in commit.base.items():
            found = vector.get(place)
            if found != expected:
                raise StaleWriterError(
                    f"table {self.table} is at {found} for {place}, but the rows start from "
                    f"{expected}: another worker writes this partition now; drop the rows and "
                    "start again from the table's vector",
                    table=str(self.table),
                    place=tuple(place),
                    expected=expected,
                    found=found,
                )

    def _write(self, commit: _Commit, loaded: Table) -> None:
        """Data files and their manifest, once for all attempts."""
        if commit.rows is None or commit.rows.num_rows == 0:
            return
        metadata, io = loaded.metadata, loaded.io
        commit.files = commit.files or write_files(
            self.table, metadata, io, commit.rows, self._executor
        )
        commit.added_path = manifests.metadata_path(metadata, f"{commit.commit_id}-m0.avro")
        commit.added = manifests.write_added(
            metadata, io, commit.files, commit.snapshot_id, commit.added_path
        )

    def _attempt(self, commit: _Commit, loaded: Table) -> tuple[Snapshot, CommitTableResponse]:
        metadata, io = loaded.metadata, loaded.io
        head = metadata.current_snapshot()
        attempt = _Attempt(head_of(metadata), [])
        commit.attempts.append(attempt)
        listed = self._manifests(commit, attempt, loaded)
        name = f"snap-{commit.snapshot_id}-{len(commit.attempts)}-{commit.commit_id}.avro"
        list_path = manifests.metadata_path(metadata, name)
        attempt.paths.append(list_path)
        vector = vector_at(metadata, head).advanced(commit.positions)
        snapshot = new_snapshot(
            metadata, commit.snapshot_id, list_path, commit.files, vector, commit.commit_id,
            self._clock.now_us() // 1_000,
        )  # fmt: skip
        sequence = snapshot.sequence_number or 0
        manifests.write_list(
            io, listed, commit.snapshot_id, snapshot.parent_snapshot_id, sequence, list_path
        )
        expired = self._retention.expired(metadata, snapshot.timestamp_ms)
        response = self._catalog.commit_table(
            loaded, requirements(metadata), updates(snapshot, expired)
        )
        self._tidy(commit, snapshot, io, expired)
        self._delete_old_metadata(loaded, response)
        return snapshot, response

    def _manifests(self, commit: _Commit, attempt: _Attempt, loaded: Table) -> list[ManifestFile]:
        """The manifests of the new snapshot, newest first; merged only in the first attempt."""
        metadata, io = loaded.metadata, loaded.io
        existing = manifests.live_manifests(metadata.current_snapshot(), io)
        due = manifests.mergeable(metadata, existing) if len(commit.attempts) == 1 else []
        if due:
            path = manifests.metadata_path(metadata, f"{commit.commit_id}-m1.avro")
            attempt.paths.append(path)
            merged = manifests.write_merged(metadata, io, due, commit.snapshot_id, path)
            replaced = {manifest.manifest_path for manifest in due}
            existing = [one for one in existing if one.manifest_path not in replaced]
            existing.append(merged)
        return existing if commit.added is None else [commit.added, *existing]

    def _tidy(
        self, commit: _Commit, landed: Snapshot, io: FileIO, expired: Sequence[Snapshot] = ()
    ) -> None:
        """Delete what attempts before the landed one wrote, and lists of expired snapshots."""
        paths = [
            path
            for attempt in commit.attempts
            if landed.manifest_list not in attempt.paths
            for path in attempt.paths
        ]
        paths += [one.manifest_list for one in expired if one.manifest_list]
        self._delete(io, paths)

    def _give_up(self, commit: _Commit) -> bool:
        """Delete the commit's files if it is proven absent for good; True when it is.

        An attempt without an answer can land as long as main is where the attempt expects it.
        """
        paths = [file.file_path for file in commit.files]
        paths += [commit.added_path] if commit.added_path else []
        paths += [path for attempt in commit.attempts for path in attempt.paths]
        if not paths:
            return True
        loaded = self._load_or_none()
        certain = loaded is not None and (
            find_commit(loaded.metadata, commit.commit_id) is None
            and not any(
                one.unknown and one.base == head_of(loaded.metadata) for one in commit.attempts
            )
        )
        if loaded is not None and certain:
            self._delete(loaded.io, paths)
        else:
            log.warning("lake_files_left", table=str(self.table), files=len(paths))
        return certain

    def _delete(self, io: FileIO, paths: Sequence[str]) -> None:
        left = delete_files(io, paths) if paths else []
        if left:
            log.warning("lake_files_not_deleted", table=str(self.table), files=left[:5])

    def _delete_old_metadata(self, loaded: Table, response: CommitTableResponse) -> None:
        try:
            self._catalog._delete_old_metadata(loaded.io, loaded.metadata, response.metadata)
        except _UNKNOWN as exc:
            # The commit has landed; old metadata files only take up room.
            log.warning("lake_old_metadata_left", table=str(self.table), error=str(exc))

    def _load(self) -> Table:
        return self._catalog.load_table(self.table.identifier)

    def _load_or_none(self) -> Table | None:
        try:
            return self._load()
        except _UNKNOWN as exc:
            log.warning("lake_load_failed", table=str(self.table), error=type(exc).__name__)
            return None

    def _persist(self, action: Callable[[], T], deadline_s: float) -> T:
        """Repeat an action that changes nothing visible until it works or the time is over."""
        tries = 0
        while True:
            try:
                return action()
            except _REFUSED as exc:
                raise self._error(exc, "refused") from exc
            except _UNKNOWN as exc:
                tries += 1
                if self._clock.monotonic_s() >= deadline_s:
                    raise self._error(exc, "did not answer") from exc
                log.warning("lake_retry", table=str(self.table), tries=tries, error=str(exc)[:200])
                self._wait(_pause_s(tries))

    def _error(self, exc: Exception, what: str) -> LakeError:
        return LakeError(
            f"table {self.table}: the catalog or the store {what} ({type(exc).__name__}: "
            f"{str(exc)[:200]}); check K2_ICEBERG_CATALOG_URI and K2_ICEBERG_WAREHOUSE",
            table=str(self.table),
        )


def _new_snapshot_id() -> int:
    return (uuid.uuid4().int >> 65) or 1


def _pause_s(tries: int) -> float:
    """Doubling, capped, and spread: two writers that collided must not collide again."""
    wait_s = min(_FIRST_WAIT_S * float(2 ** max(0, tries - 1)), _LONGEST_WAIT_S)
    return wait_s * random.uniform(0.5, 1.5)  # noqa: S311
