"""Maintain: one worker at a time merges, tags and cleans the tables of the lake.

Guarantee: nothing a snapshot needs is deleted and no row is lost or doubled, whatever the sink does
meanwhile and wherever a round is cut off. A round that fails is logged, counted and done again.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from k2 import metrics
from k2.clock import Clock
from k2.errors import LakeError
from k2.lake.commit import UNKNOWN
from k2.maintenance.keeper import Keeper
from k2.setting_lake import Maintain

log = structlog.get_logger(__name__)

_HOUR_S: Final = 3_600.0
#: Seconds between the lesser duties of a table.
_EVERY_S: Final[Mapping[str, float]] = {
    "tags": 300.0,
    "sweep": 600.0,
    "rows": _HOUR_S,
    "orphans": 24 * _HOUR_S,
}
#: More manifests than one per so many files are put in order.
_FILES_PER_MANIFEST: Final = 10
_FEWEST_MANIFESTS: Final = 100


class MaintainStep:
    """Rounds of maintenance while this worker is the elected one; each in a thread.

    While it is not `calm` the lake is looked at and nothing else is begun.
    """

    def __init__(
        self,
        settings: Maintain,
        keepers: Mapping[str, Keeper],
        elected: Callable[[], bool],
        clock: Clock,
        calm: Callable[[], bool] = lambda: True,
    ) -> None:
        self._settings = settings
        self._keepers = keepers
        self._elected = elected
        self._calm = calm
        self._clock = clock
        self._stopping = threading.Event()
        # Thorough cleaning is not for a worker that has just started.
        self._next_s = {(name, "orphans"): clock.monotonic_s() + _HOUR_S for name in keepers}

    async def run(self) -> None:
        """Rounds for ever."""
        while True:
            await self._clock.sleep(self._settings.interval_s)
            for name in self._keepers:
                if self._elected() and not self._stopping.is_set():
                    await asyncio.to_thread(self.round, name)

    def stop(self) -> None:
        """Begin nothing more; a merge on its way ends within seconds."""
        self._stopping.set()
        for keeper in self._keepers.values():
            keeper.give_up()

    def round(self, name: str) -> None:
        """One table's round; blocking. A failure is for the next round to mend."""
        keeper = self._keepers[name]
        with metrics.MAINTENANCE_SECONDS.labels(name).time():
            try:
                self._compact(name, keeper)
                self._lesser(name, keeper)
                self._measure(name, keeper)
            except (LakeError, *UNKNOWN) as exc:
                # A store or catalog that is away is no reason to stop the worker.
                metrics.MAINTENANCE_FAILURES.labels(name).inc()
                log.warning("maintenance_failed", table=name, error=f"{type(exc).__name__}: {exc}")

    def _compact(self, name: str, keeper: Keeper) -> None:
        report = keeper.compact(
            budget_s=self._settings.budget_s, stopping=lambda: not self._may_begin()
        )
        if report.commits:
            metrics.MAINTAINED_FILES.labels(name, "merged").inc(report.files_before)
            log.info("compacted", **report.as_dict())

    def _lesser(self, name: str, keeper: Keeper) -> None:
        if self._due(name, "tags"):
            keeper.tag_history()
        if self._due(name, "rows"):
            metrics.MAINTAINED_FILES.labels(name, "retired").inc(keeper.drop_old_rows())
        if self._due(name, "sweep"):
            swept = keeper.cleaner.sweep(grace_s=keeper.options.grace_s)
            metrics.MAINTAINED_FILES.labels(name, "swept").inc(swept.files)
        if self._due(name, "orphans"):
            found = keeper.cleaner.orphans(older_than_s=self._settings.orphan_age_h * _HOUR_S)
            metrics.MAINTAINED_FILES.labels(name, "orphaned").inc(found.files)

    def _due(self, name: str, duty: str) -> bool:
        now_s = self._clock.monotonic_s()
        if not self._may_begin() or now_s < self._next_s.get((name, duty), now_s):
            return False
        self._next_s[(name, duty)] = now_s + _EVERY_S[duty]
        return True

    def _may_begin(self) -> bool:
        return self._calm() and not self._stopping.is_set()

    def _measure(self, name: str, keeper: Keeper) -> None:
        status = keeper.status()
        crowded = max(_FEWEST_MANIFESTS, status.files // _FILES_PER_MANIFEST)
        if status.manifests > crowded and self._may_begin():
            keeper.rewrite_manifests()
            status = keeper.status()
        metrics.LAKE_FILES.labels(name).set(status.files)
        metrics.LAKE_FILE_BYTES.labels(name).set(status.bytes_per_file)
        metrics.LAKE_MOST_FILES.labels(name).set(status.most_files)
        metrics.LAKE_SNAPSHOTS.labels(name).set(status.snapshots)
        metrics.LAKE_MANIFESTS.labels(name).set(status.manifests)
        metrics.LAKE_PLAN_SECONDS.labels(name).set(status.plan_ms / 1_000)
