"""Put one change into a table, exactly once: the loop every writer of the lake runs.

Our own loop instead of PyIceberg's: its automatic retry would append a batch again that another
writer has already superseded, and its clean-up deletes the files of a commit that did land but was
answered with a conflict. A change writes its files once; an attempt redoes only the manifest list.
An unknown outcome is decided by looking for our commit in the reloaded table.
"""

from __future__ import annotations

import random
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
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
from pyiceberg.manifest import ManifestFile
from pyiceberg.table import CommitTableResponse, Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Operation, Snapshot
from requests.exceptions import RequestException
from sqlalchemy.exc import SQLAlchemyError

from k2.clock import SYSTEM_CLOCK, Clock
from k2.errors import CommitConflictError, LakeError
from k2.faultpoints import Point, reached
from k2.lake import manifests
from k2.lake.files import delete_files
from k2.lake.history import Retention, find_commit
from k2.lake.snapshot import head_of, new_snapshot, requirements, updates
from k2.lake.tables import TableDef
from k2.lake.vector import Vector
from k2.log import bind_correlation

log = structlog.get_logger(__name__)

#: The request was understood and refused; trying again cannot help.
REFUSED: Final = (BadRequestError, UnauthorizedError, ForbiddenError, NoSuchTableError)
#: Nothing is known about the outcome: no answer, a broken one, or an error of the server. A broken
#: answer is pydantic's ValidationError.
UNKNOWN: Final = (
    RESTError,
    RequestException,
    SQLAlchemyError,
    OSError,
    pa.ArrowException,
    ValidationError,
)
T = TypeVar("T")
Watch = Callable[[BaseException | None], None]
_FIRST_WAIT_S: Final = 0.05
_LONGEST_WAIT_S: Final = 3.0


def unwatched(_error: BaseException | None) -> None:
    """Nobody is told."""
    return


@dataclass(slots=True)
class Attempt:
    """What one attempt built on and wrote. `unknown`: it may still land while main is at `base`."""

    number: int
    base: int | None
    paths: list[str]
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class Contents:
    """What the new snapshot holds. `counts`: Iceberg's summary keys of what came and went."""

    manifests: list[ManifestFile]
    vector: Vector
    counts: Mapping[str, int]


class Change(ABC):
    """One change of a table on its way through its attempts."""

    operation: Operation = Operation.APPEND
    #: Summary totals start from this snapshot's instead of the head's (rollback).
    totals_of: Snapshot | None = None
    #: What else the snapshot's summary says.
    notes: Mapping[str, str] = MappingProxyType({})

    def __init__(self) -> None:
        self.commit_id = str(uuid.uuid4())
        self.snapshot_id = new_snapshot_id()

    @abstractmethod
    def check(self, loaded: Table) -> None:
        """Raise `LakeError` when the change may not be put on exactly this metadata."""

    @abstractmethod
    def prepare(self, loaded: Table) -> None:
        """Write what serves all attempts; called again after a failure."""

    @abstractmethod
    def build(self, loaded: Table, attempt: Attempt) -> Contents:
        """The new snapshot's contents; what only this attempt uses goes into `attempt.paths`."""

    @abstractmethod
    def written(self) -> list[str]:
        """Everything `prepare` wrote, to be deleted when the change is proven absent."""


@dataclass(frozen=True, slots=True)
class Landed:
    """A change that is in the table. `seconds` counts preparing and all attempts."""

    snapshot: Snapshot
    metadata: TableMetadata
    metadata_location: str
    seconds: float
    attempts: int


class CommitLoop:
    """Commits changes to one table; blocking. `wait` and `clock` are injected for tests."""

    def __init__(
        self,
        catalog: Catalog,
        table: TableDef,
        *,
        retry_s: float = 60.0,
        retention: Retention | None = None,
        clock: Clock = SYSTEM_CLOCK,
        wait: Callable[[float], object] | None = None,
        watch: Watch = unwatched,
    ) -> None:
        """`watch` is told how catalog and store behave: each error, and None for what landed."""
        self.table = table
        self._catalog = catalog
        self._watch = watch
        self._retry_s = retry_s
        self._retention = retention or Retention()
        self._clock = clock
        self._given_up = threading.Event()
        self._wait = wait or self._given_up.wait

    def load(self) -> Table:
        """The table now. Raises `LakeError` when the catalog does not answer in time."""
        return self._persist(self._load, self._clock.monotonic_s() + self._retry_s)

    def outlast(self, look: Callable[[], T]) -> T:
        """What `look` finds in the lake, asked again for as long as a commit would be.

        Raises its last `LakeError`, whose outcome is "absent": nothing was written.
        """
        deadline_s, tries = self._clock.monotonic_s() + self._retry_s, 0
        while True:
            try:
                return look()
            except LakeError as exc:
                tries += 1
                if self._over(deadline_s):
                    exc.details["outcome"] = "absent"
                    raise
                error = exc.message[:200]
                log.warning("lake_retry", table=str(self.table), tries=tries, error=error)
                self._wait(_pause_s(tries))

    def run(self, change: Change) -> Landed:
        """Put `change` on top of main.

        Raises what `check` raises, `CommitConflictError` when others were faster until the retry
        time was over, `LakeError` when the catalog or the store refused or did not answer. The
        error's `details["outcome"]` is "absent" when nothing of the change is or ever will be in
        the table, else "unknown": then its files stay.
        """
        with bind_correlation(commit_id=change.commit_id):
            return self._timed(change)

    def _timed(self, change: Change) -> Landed:
        started_s = self._clock.monotonic_s()
        attempts: list[Attempt] = []
        try:
            snapshot, landed = self._run(change, attempts, started_s + self._retry_s)
        except LakeError as exc:
            exc.details["outcome"] = "absent" if self._give_up(change, attempts) else "unknown"
            raise
        return Landed(
            snapshot,
            landed.metadata,
            landed.metadata_location,
            self._clock.monotonic_s() - started_s,
            max(1, len(attempts)),
        )

    def _run(
        self, change: Change, attempts: list[Attempt], deadline_s: float
    ) -> tuple[Snapshot, Table | CommitTableResponse]:
        loaded = self._persist(self._load, deadline_s)
        change.check(loaded)
        self._persist(lambda: change.prepare(loaded), deadline_s)
        while True:
            try:
                change.check(loaded)
                return self._attempt(change, attempts, loaded)
            except CommitFailedException as exc:
                conflict: Exception = exc
            except REFUSED as exc:
                raise self._error(exc, "refused the commit") from exc
            except UNKNOWN as exc:
                self._watch(exc)
                conflict = exc
                if attempts:
                    attempts[-1].unknown = True
            loaded = self._again(change, attempts, conflict, deadline_s)
            found = find_commit(loaded.metadata, change.commit_id)
            if found is not None:
                log.info("lake_commit_found", table=str(self.table))
                self._tidy(attempts, found, loaded.io)
                return found, loaded

    def _again(
        self, change: Change, attempts: list[Attempt], cause: Exception, deadline_s: float
    ) -> Table:
        """Wait, then load the table anew. Raises when the time is over."""
        conflict = isinstance(cause, CommitFailedException)
        log.warning(
            "lake_commit_retry",
            table=str(self.table),
            attempt=len(attempts),
            conflict=conflict,
            error=type(cause).__name__,
        )
        if not self._over(deadline_s):
            self._wait(_pause_s(len(attempts)))
            return self._persist(self._load, deadline_s)
        # One last look, for the attempt whose time ran out may have landed.
        loaded = self._load_or_none()
        if loaded is not None and find_commit(loaded.metadata, change.commit_id) is not None:
            return loaded
        if conflict:
            raise CommitConflictError(
                f"commit to {self.table}: other writers were faster for {self._retry_s} s in "
                f"{len(attempts)} attempts; raise K2_ICEBERG_COMMIT_RETRY_S or run fewer "
                "sinks",
                table=str(self.table),
                attempts=len(attempts),
            ) from cause
        raise self._error(cause, "did not answer") from cause

    def _attempt(
        self, change: Change, attempts: list[Attempt], loaded: Table
    ) -> tuple[Snapshot, CommitTableResponse]:
        metadata, io = loaded.metadata, loaded.io
        attempt = Attempt(len(attempts) + 1, head_of(metadata), [])
        attempts.append(attempt)
        contents = change.build(loaded, attempt)
        name = f"snap-{change.snapshot_id}-{attempt.number}-{change.commit_id}.avro"
        list_path = manifests.metadata_path(metadata, name)
        attempt.paths.append(list_path)
        snapshot = new_snapshot(
            metadata,
            change.snapshot_id,
            list_path,
            change.operation,
            contents.counts,
            contents.vector,
            change.commit_id,
            self._clock.now_us() // 1_000,
            totals_of=change.totals_of,
            notes=change.notes,
        )
        sequence = snapshot.sequence_number or 0
        manifests.write_list(
            io,
            contents.manifests,
            change.snapshot_id,
            snapshot.parent_snapshot_id,
            sequence,
            list_path,
        )
        expired = self._retention.expired(metadata, snapshot.timestamp_ms)
        reached(Point.BEFORE_COMMIT)
        response = self._catalog.commit_table(
            loaded, requirements(metadata), updates(snapshot, expired)
        )
        self._watch(None)
        reached(Point.AFTER_COMMIT)
        self._tidy(attempts, snapshot, io, expired)
        self._delete_old_metadata(loaded, response)
        return snapshot, response

    def _tidy(
        self,
        attempts: Sequence[Attempt],
        landed: Snapshot,
        io: FileIO,
        expired: Sequence[Snapshot] = (),
    ) -> None:
        """Delete what attempts before the landed one wrote, and lists of expired snapshots."""
        paths = [
            path
            for attempt in attempts
            if landed.manifest_list not in attempt.paths
            for path in attempt.paths
        ]
        paths += [one.manifest_list for one in expired if one.manifest_list]
        self.delete(io, paths)

    def _give_up(self, change: Change, attempts: Sequence[Attempt]) -> bool:
        """Delete the change's files if it is proven absent for good; True when it is.

        An attempt without an answer can land as long as main is where the attempt expects it.
        """
        paths = change.written()
        paths += [path for attempt in attempts for path in attempt.paths]
        if not paths:
            return True
        loaded = self._load_or_none()
        certain = loaded is not None and (
            find_commit(loaded.metadata, change.commit_id) is None
            and not any(one.unknown and one.base == head_of(loaded.metadata) for one in attempts)
        )
        if loaded is not None and certain:
            self.delete(loaded.io, paths)
        else:
            log.warning("lake_files_left", table=str(self.table), files=len(paths))
        return certain

    def delete(self, io: FileIO, paths: Sequence[str]) -> None:
        """Delete files nothing refers to any more; what cannot be deleted is logged."""
        left = delete_files(io, paths) if paths else []
        if left:
            log.warning("lake_files_not_deleted", table=str(self.table), files=left[:5])

    def _delete_old_metadata(self, loaded: Table, response: CommitTableResponse) -> None:
        try:
            self._catalog._delete_old_metadata(loaded.io, loaded.metadata, response.metadata)
        except UNKNOWN as exc:
            # The commit has landed; old metadata files only take up room.
            log.warning("lake_old_metadata_left", table=str(self.table), error=str(exc))

    def _load(self) -> Table:
        return self._catalog.load_table(self.table.identifier)

    def _load_or_none(self) -> Table | None:
        try:
            return self._load()
        except UNKNOWN as exc:
            log.warning("lake_load_failed", table=str(self.table), error=type(exc).__name__)
            return None

    def give_up(self) -> None:
        """Try nothing again; what is under way may still land."""
        self._given_up.set()

    def _over(self, deadline_s: float) -> bool:
        return self._given_up.is_set() or self._clock.monotonic_s() >= deadline_s

    def _persist(self, action: Callable[[], T], deadline_s: float) -> T:
        """Repeat an action that changes nothing visible until it works or the time is over."""
        tries = 0
        while True:
            try:
                return action()
            except REFUSED as exc:
                raise self._error(exc, "refused") from exc
            except UNKNOWN as exc:
                tries += 1
                self._watch(exc)
                if self._over(deadline_s):
                    raise self._error(exc, "did not answer") from exc
                log.warning("lake_retry", table=str(self.table), tries=tries, error=str(exc)[:200])
                self._wait(_pause_s(tries))

    def _error(self, exc: Exception, what: str) -> LakeError:
        return LakeError(
            f"table {self.table}: the catalog or the store {what} ({type(exc).__name__}: "
            f"{str(exc)[:200]}); check K2_ICEBERG_CATALOG_URI and K2_ICEBERG_WAREHOUSE",
            table=str(self.table),
        )


def new_snapshot_id() -> int:
    """A random positive 63-bit id."""
    return (uuid.uuid4().int >> 65) or 1


def _pause_s(tries: int) -> float:
    """Doubling, capped, and spread: two writers that collided must not collide again."""
    wait_s = min(_FIRST_WAIT_S * float(2 ** max(0, tries - 1)), _LONGEST_WAIT_S)
    return wait_s * random.uniform(0.5, 1.5)  # noqa: S311
