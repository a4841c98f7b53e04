"""Control: one worker turns everybody's lag and memory into the level that all agree on.

Every worker reports to the control topic once a second. Whoever owns its one partition judges the
reports and writes the global table; the others read it. A worker whose reports stop is forgotten,
and a new owner starts from the level in the table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog

from k2 import metrics
from k2.clock import Clock
from k2.degradation.controller import Controller, Inputs, Transition
from k2.degradation.levels import Level
from k2.degradation.memory import MemoryGauge
from k2.errors import K2Error
from k2.settings import Degradation

log = structlog.get_logger(__name__)

_FORGET_S = 10.0
KEY = "level"


class ControlStep:
    """Reports of this worker, and the controller when it owns the control partition."""

    def __init__(
        self,
        settings: Degradation,
        table: Any,
        send: Callable[..., Awaitable[Any]],
        lag: Callable[[], int],
        clock: Clock,
        worker_id: str,
    ) -> None:
        """`send(value=…)` writes a report to the control topic and raises `LogError`."""
        self._settings = settings
        self._table = table
        self._send = send
        self._lag = lag
        self._clock = clock
        self._worker_id = worker_id
        self._memory = MemoryGauge(settings.memory_limit_mb)
        # Being exempt is this worker's own: its reports say so, the others' still count.
        self._controller = Controller(settings.model_copy(update={"exempt": False}), clock)
        self._reports: dict[str, tuple[float, Inputs]] = {}

    @property
    def level(self) -> Level:
        """The level in the global table: the same on every worker."""
        entry = self._table.get(KEY)
        return Level(entry["level"]) if entry else Level.NORMAL

    def facts(self) -> dict[str, Any]:
        """Reason and age of the level, and this worker's own inputs."""
        entry = self._table.get(KEY) or {}
        return {
            "reason": entry.get("reason", ""),
            "since_us": entry.get("since_us"),
            "memory_fraction": round(self._memory.fraction(), 4),
            "exempt": self._settings.exempt,
        }

    async def run(self) -> None:
        """Report for ever. A log that takes no report is waited for: the level stays as it is."""
        while True:
            try:
                await self._send(value=self._report())
            except K2Error as exc:
                log.warning("report_not_sent", error=exc.message, **exc.details)
            metrics.DEGRADATION_LEVEL.set(self.level)
            await self._clock.sleep(self._settings.interval_s)

    def _report(self) -> dict[str, Any]:
        exempt = self._settings.exempt
        return {
            "worker": self._worker_id,
            "lag": 0 if exempt else self._lag(),
            "memory": 0.0 if exempt else self._memory.fraction(),
        }

    def judge(self, report: Mapping[str, Any]) -> None:
        """Take a report (on the owner of the control partition, inside its stream).

        Lag is the cluster's: partitions are spread, so the reports add up. Memory is each worker's
        own: the fullest one counts.
        """
        now_s = self._clock.monotonic_s()
        inputs = Inputs(int(report["lag"]), float(report["memory"]))
        self._reports[str(report["worker"])] = (now_s, inputs)
        self._reports = {
            worker: entry
            for worker, entry in self._reports.items()
            if now_s - entry[0] <= _FORGET_S
        }
        self._controller.level = self.level
        known = [entry for _, entry in self._reports.values()]
        together = Inputs(sum(entry.lag for entry in known), max(e.memory for e in known))
        transition = self._controller.update(together)
        if transition is not None:
            self._publish(transition)

    def _publish(self, transition: Transition) -> None:
        self._table[KEY] = {
            "level": int(transition.after),
            "reason": transition.reason,
            "since_us": transition.at_us,
        }
        metrics.DEGRADATION_TRANSITIONS.labels(transition.before.name, transition.after.name).inc()
        log.warning(
            "degradation_level",
            before=transition.before.name,
            after=transition.after.name,
            reason=transition.reason,
        )
