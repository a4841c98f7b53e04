"""Compaction of one table: rewrite what is due, then put it in the place of the small files.

A crash at any point leaves a correct table: until the commit nothing refers to what was written,
after it nothing but older snapshots to what was replaced.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import pyarrow as pa
import structlog
from pyiceberg.catalog import Catalog
from pyiceberg.manifest import DataFile
from pyiceberg.table.snapshots import Operation

from k2.clock import SYSTEM_CLOCK, Clock
from k2.errors import LakeError, SupersededError
from k2.lake.commit import CommitLoop
from k2.lake.files import delete_files
from k2.lake.history import Retention
from k2.lake.reader import LakeReader, Pinned
from k2.lake.tables import TableDef
from k2.maintenance.plan import (
    CompactionPolicy,
    Group,
    Partition,
    plan,
    quiet_partitions,
    rows_of,
)
from k2.maintenance.replace import ReplaceFiles
from k2.maintenance.rewrite import Rewriter
from k2.maintenance.status import most_files

log = structlog.get_logger(__name__)

#: Files replaced by one commit: few commits, and little to write anew should one be refused.
_FILES_PER_COMMIT: Final = 1_024


@dataclass(slots=True)
class CompactionReport:
    """What a run did, or would do. `groups` counts partitions' merges.

    `most_files`: live files of the fullest partition before it. `rows_replaced`: versions that
    newer ones have replaced and that were left out.
    """

    table: str
    groups: int = 0
    files_before: int = 0
    files_after: int = 0
    rows: int = 0
    rows_replaced: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    commits: int = 0
    superseded: int = 0
    seconds: float = 0.0
    left: int = 0
    most_files: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": round(self.seconds, 3)}


class Compactor:
    """Compacts one table; blocking, so call it in a thread. `clock` and `wait` for tests."""

    def __init__(
        self,
        catalog: Catalog,
        table: TableDef,
        *,
        policy: CompactionPolicy | None = None,
        retry_s: float = 60.0,
        retention: Retention | None = None,
        clock: Clock = SYSTEM_CLOCK,
        wait: Callable[[float], None] = time.sleep,
        reader: LakeReader | None = None,
    ) -> None:
        self._table = table
        self._policy = policy or CompactionPolicy()
        self._clock = clock
        self._reader = reader or LakeReader(catalog)
        self._rows: Mapping[Partition, int] = {}
        self._loop = CommitLoop(
            catalog, table, retry_s=retry_s, retention=retention, clock=clock, wait=wait
        )

    def due(self) -> tuple[Pinned, list[Group]]:
        """The newest snapshot and what is due in it. Raises `LakeError`.

        A day that is over is finished once nothing came to it between two calls.
        """
        pinned = self._reader.current(self._table)
        if self._reader.has_deletes(pinned):
            raise LakeError(
                f"table {self._table} has delete files of another engine; let that engine rewrite "
                "its data files first (Trino: ALTER TABLE … EXECUTE optimize)",
                table=str(self._table),
            )
        files = self._reader.files(pinned)
        before, self._rows = self._rows, rows_of(files)
        quiet = quiet_partitions(self._rows, before, self._clock.now_us())
        return pinned, plan(files, self._policy, quiet=quiet)

    def run(
        self,
        *,
        budget_s: float = float("inf"),
        dry_run: bool = False,
        stopping: Callable[[], bool] = lambda: False,
    ) -> CompactionReport:
        """Merge what is due until the time is over; what is left waits for the next run.

        `stopping` is asked before each merge: what is merged by then is committed.
        """
        report = CompactionReport(str(self._table))
        started_s = self._clock.monotonic_s()
        pinned, groups = self.due()
        report.most_files = most_files(self._reader.files(pinned))

        def over() -> bool:
            return stopping() or self._clock.monotonic_s() - started_s >= budget_s

        while groups and not over():
            batch = _batch(groups)
            if dry_run:
                _count(report, batch, [])
            else:
                batch = self._compact(pinned, batch, report, over)
            groups = groups[len(batch) :]
        report.left = len(groups)
        report.seconds = self._clock.monotonic_s() - started_s
        return report

    def give_up(self) -> None:
        """Do not try again; for a worker that stops."""
        self._loop.give_up()

    def _compact(
        self,
        pinned: Pinned,
        groups: list[Group],
        report: CompactionReport,
        over: Callable[[], bool],
    ) -> list[Group]:
        """Rewrite and commit; returns the groups that were done before the time was over."""
        added, done = self._rewrite(pinned, groups, over)
        groups = groups[:done]
        removed = {file.path: file.day for group in groups for file in group.files}
        try:
            self._loop.run(ReplaceFiles(self._table, added, removed, _operation(groups, added)))
        except SupersededError as exc:
            # Rolled back or rewritten meanwhile: what is due is planned anew next time.
            report.superseded += 1
            log.warning("compaction_superseded", table=str(self._table), error=exc.message)
            return groups
        report.commits += 1
        _count(report, groups, added)
        return groups

    def _rewrite(
        self, pinned: Pinned, groups: list[Group], over: Callable[[], bool] = lambda: False
    ) -> tuple[list[DataFile], int]:
        """The new files and how many of the groups they are of; at least one."""
        rewriter = Rewriter(self._table, pinned.metadata, pinned.io, self._policy.target_bytes)
        added: list[DataFile] = []
        done = 0
        run = uuid.uuid4()
        try:
            for number, group in enumerate(groups):
                if number and over():
                    break
                added += rewriter.rewrite(group, f"c-{run}-{number:04d}")
                done = number + 1
        except (OSError, pa.ArrowException) as exc:
            delete_files(pinned.io, [file.file_path for file in added])
            raise LakeError(
                f"compaction of {self._table}: the store did not take or give a file "
                f"({type(exc).__name__}: {str(exc)[:200]}); nothing was changed",
                table=str(self._table),
            ) from exc
        except BaseException:
            delete_files(pinned.io, [file.file_path for file in added])
            raise
        return added, done


def _batch(groups: list[Group]) -> list[Group]:
    """The first groups, up to what one commit replaces."""
    files = 0
    for number, group in enumerate(groups):
        files += len(group.files)
        if files >= _FILES_PER_COMMIT:
            return groups[: number + 1]
    return groups


def _operation(groups: list[Group], added: list[DataFile]) -> Operation:
    """A replace says that no row went; who reads changes one by one must hear of what did."""
    return Operation.OVERWRITE if _replaced(groups, added) else Operation.REPLACE


def _replaced(groups: list[Group], added: list[DataFile]) -> int:
    return sum(group.rows for group in groups) - sum(file.record_count for file in added)


def _count(report: CompactionReport, groups: list[Group], added: list[DataFile]) -> None:
    report.groups += len(groups)
    report.files_before += sum(len(group.files) for group in groups)
    report.rows += sum(group.rows for group in groups)
    report.bytes_before += sum(group.bytes for group in groups)
    report.files_after += len(added)
    report.rows_replaced += _replaced(groups, added) if added else 0
    report.bytes_after += sum(file.file_size_in_bytes for file in added)
