"""Everything that keeps one table in order, for the worker and for `k2 lake`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pyiceberg.catalog import Catalog
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Operation, Snapshot
from pyiceberg.table.update import RemoveSnapshotRefUpdate, TableUpdate

from k2.clock import SYSTEM_CLOCK, Clock
from k2.errors import LakeError
from k2.lake.commit import CommitLoop, Landed
from k2.lake.history import Retention
from k2.lake.reader import LakeReader
from k2.lake.tables import TableDef
from k2.maintenance import alter, refs
from k2.maintenance.compact import CompactionReport, Compactor
from k2.maintenance.orphans import MIN_AGE_S, Cleaner
from k2.maintenance.plan import CompactionPolicy
from k2.maintenance.replace import ReplaceFiles, RewriteManifests, Rollback
from k2.maintenance.status import TableStatus, status
from k2.times import DAY_US


@dataclass(frozen=True, slots=True)
class KeeperOptions:
    """How a table is kept. `rows_days` 0: rows stay for ever. `retry_s`: of a commit.

    `readers_s`: how long queries go on reading a snapshot that may have expired meanwhile.
    """

    policy: CompactionPolicy = field(default_factory=CompactionPolicy)
    retention: Retention = field(default_factory=Retention)
    rows_days: int = 0
    retry_s: float = 60.0
    readers_s: float = 900.0

    @property
    def grace_s(self) -> float:
        """Age from which what was replaced may be deleted."""
        return max(MIN_AGE_S, 4 * self.retry_s, 2 * self.readers_s)


class Keeper:
    """Maintains one table; every method blocks, so call it in a thread. Methods raise `LakeError`.

    Any of them may run beside the sink and beside another keeper: what was overtaken is refused or
    done again, and nothing a snapshot needs is deleted.
    """

    def __init__(
        self,
        catalog: Catalog,
        table: TableDef,
        options: KeeperOptions | None = None,
        *,
        clock: Clock = SYSTEM_CLOCK,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self.table = table
        self.options = options or KeeperOptions()
        self._catalog = catalog
        self._clock = clock
        self._wait = wait
        self._reader = LakeReader(catalog)
        self._loop = CommitLoop(
            catalog,
            table,
            retry_s=self.options.retry_s,
            retention=self.options.retention,
            clock=clock,
            wait=wait,
        )
        self._compactor = Compactor(
            catalog,
            table,
            policy=self.options.policy,
            retry_s=self.options.retry_s,
            retention=self.options.retention,
            clock=clock,
            wait=wait,
            reader=self._reader,
        )
        self.cleaner = Cleaner(catalog, table, clock=clock)

    def status(self) -> TableStatus:
        """What the table is made of."""
        return status(self._reader, self.table, self.options.policy)

    def compact(
        self,
        *,
        budget_s: float = float("inf"),
        dry_run: bool = False,
        stopping: Callable[[], bool] = lambda: False,
    ) -> CompactionReport:
        """Merge small files until the time is over or `stopping` says so."""
        return self._compactor.run(budget_s=budget_s, dry_run=dry_run, stopping=stopping)

    def rewrite_manifests(self) -> Landed:
        """Order the table's manifests by day and bucket."""
        return self._loop.run(RewriteManifests(self.table))

    def expire(self, *, dry_run: bool = False) -> list[int]:
        """Remove the snapshots the retention lets go; returns their ids."""
        return alter.expire(
            self._catalog,
            self.table,
            self.options.retention,
            self._now_ms(),
            dry_run=dry_run,
            wait=self._wait,
        )

    def tag_history(self) -> list[TableUpdate]:
        """Tag the last snapshot of each full hour and day, remove outlived tags."""

        def decide(metadata: TableMetadata) -> list[TableUpdate]:
            return refs.due_tags(metadata, self._now_ms(), self.options.retention.days)

        return alter.alter(self._catalog, self.table, decide, self._wait)

    def tag(self, name: str, snapshot: str | None = None) -> int:
        """Name a snapshot (id, tag or time; None: the newest) for good; returns its id."""
        chosen = 0

        def decide(metadata: TableMetadata) -> list[TableUpdate]:
            nonlocal chosen
            head = metadata.current_snapshot()
            found = head if snapshot is None else refs.snapshot_named(metadata, snapshot)
            if found is None:
                raise LakeError(f"table {self.table} is empty; there is nothing to tag")
            taken = metadata.refs.get(name)
            if chosen and taken is not None and taken.snapshot_id == chosen:
                # Our own request, whose answer got lost.
                return []
            refs.check_new_tag(metadata, name)
            chosen = found.snapshot_id
            return [refs.tag_update(name, found, None)]

        alter.alter(self._catalog, self.table, decide, self._wait)
        return chosen

    def untag(self, name: str) -> None:
        """Remove a tag; its snapshot may expire then."""
        asked = False

        def decide(metadata: TableMetadata) -> list[TableUpdate]:
            nonlocal asked
            if asked and name not in metadata.refs:
                return []
            refs.check_old_tag(metadata, name)
            asked = True
            return [RemoveSnapshotRefUpdate(ref_name=name)]

        alter.alter(self._catalog, self.table, decide, self._wait)

    def rollback_target(self, snapshot: str) -> tuple[Snapshot, int, int]:
        """The snapshot meant, its rows and the rows of now."""
        metadata = self._loop.load().metadata
        target = refs.snapshot_named(metadata, snapshot)
        pinned = self._reader.by_id(self.table, target.snapshot_id)
        current = self._reader.current(self.table)
        rows, now = (sum(f.rows for f in self._reader.files(one)) for one in (pinned, current))
        return target, rows, now

    def rollback(self, snapshot: str) -> Landed:
        """Make the rows of an older snapshot the table's, keeping the vector of now.

        What was stored since is gone from the table, but not read from the log again.
        """
        metadata = self._loop.load().metadata
        target = refs.snapshot_named(metadata, snapshot)
        head = metadata.current_snapshot()
        if head is not None and target.snapshot_id == head.snapshot_id:
            raise LakeError(f"table {self.table} is at snapshot {target.snapshot_id} already")
        return self._loop.run(Rollback(self.table, target))

    def drop_old_rows(self, *, dry_run: bool = False) -> int:
        """Take out whole days older than `rows_days`; returns how many files that were, or would
        be."""
        if not self.options.rows_days:
            return 0
        first_day = self._clock.now_us() // DAY_US - self.options.rows_days
        pinned = self._reader.current(self.table)
        removed = {
            file.path: file.day
            for file in self._reader.files(pinned)
            if file.day is not None and file.day < first_day
        }
        if removed and not dry_run:
            self._loop.run(ReplaceFiles(self.table, [], removed, Operation.DELETE))
        return len(removed)

    def give_up(self) -> None:
        """Wait for nothing any more: what is on its way succeeds now or fails."""
        self._loop.give_up()
        self._compactor.give_up()

    def _now_ms(self) -> int:
        return self._clock.now_us() // 1_000
