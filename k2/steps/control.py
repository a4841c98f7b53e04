"""Control: one worker turns everybody's lag and memory into the level that all agree on.

Every worker reports to the control topic once a second. Whoever owns its one partition judges the
reports and writes the global table; the others read it. A worker whose reports stop is forgotten,
and a new owner starts from the level in the table. A level set by hand comes the same way, so it
holds for all and outlives the owner. What workers tell of themselves beside is the roster's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, cast

import structlog

from k2 import metrics
from k2.clock import Clock
from k2.degradation.controller import Controller, Held, Inputs, Transition
from k2.degradation.levels import Level
from k2.degradation.memory import MemoryGauge
from k2.degradation.override import Override
from k2.errors import K2Error
from k2.settings import Degradation
from k2.steps.roster import FORGET_S, Roster

log = structlog.get_logger(__name__)

KEY = "level"
OVERRIDE_KEY = "override"
HISTORY_KEY = "history"
_HISTORY = 100
_NEWER = 2**63
#: Longest wait until the log has what somebody set by hand.
_CONFIRM_S = 5.0


class Shared(Protocol):
    """The global table (`k2.steps.tables.SharedTable`)."""

    def get(self, key: str) -> Any:
        """The entry as it is known here; None where there is none."""

    def __setitem__(self, key: str, value: Any) -> None: ...

    def resend(self) -> None:
        """Write again what the log refused."""

    def forget(self) -> None:
        """Hold what was read from the log only: somebody else writes from now on."""


class ControlStep:
    """Reports of this worker, and the controller when it owns the control partition."""

    def __init__(
        self,
        settings: Degradation,
        table: Shared,
        send: Callable[..., Awaitable[Any]],
        lag: Callable[[], int],
        clock: Clock,
        worker_id: str,
        announce: Callable[..., Awaitable[Any]] | None = None,
        *,
        moves_records: bool = True,
        ease: Callable[[], None] = lambda: None,
        summary: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        """`send(value=…)` hands a report to the control topic and raises `LogError`; given
        `within_s`, also when the log does not have it by then.

        `announce(value=…)`: the same for changes of level, which are also kept in the table.
        `moves_records`: False for a worker whose memory shedding cannot relieve: it refuses queries
        by itself, and must not degrade all others. `ease()`: lets go of what can be made again.
        `summary()`: what the others are told of this worker.
        """
        self.roster = Roster(table, clock, worker_id, summary)
        self._moves_records, self._ease = moves_records, ease
        self._own = Controller(settings, clock)
        self._announce = announce
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
        #: What this worker wrote last, as the owner.
        self._written: dict[str, Any] | None = None
        self._history: list[dict[str, Any]] = []

    @property
    def level(self) -> Level:
        """The level in the global table: the same on every worker."""
        entry = self._entry()
        return Level(entry["level"]) if entry else Level.NORMAL

    @property
    def bringing(self) -> Level:
        """The level as far as bringing what was put off goes: NORMAL, too, where only memory holds
        SOFT, which puts nothing off. Memory that rests near its trigger must not keep it waiting.
        """
        held = _held_of(self._entry())
        calm = held.lag is Level.NORMAL and held.level <= Level.SOFT and held.hand is None
        return Level.NORMAL if calm else self.level

    @property
    def here(self) -> Level:
        """The level of this worker: that of all, or a higher one for its own memory's sake."""
        return max(self.level, self._own.level)

    def _entry(self) -> Mapping[str, Any] | None:
        """The newest entry of the level.

        The owner's table takes what the owner wrote once more, from its changelog, a while later:
        of two quick changes the first would come back for a moment.
        """
        entry, written = self._table.get(KEY), self._written
        # One without a number is an older version's, which writes no other.
        if written is None or (entry and entry.get("number", _NEWER) >= written["number"]):
            return cast("Mapping[str, Any] | None", entry)
        return written

    @property
    def override(self) -> Override | None:
        """The level set by hand, while it holds."""
        entry = self._table.get(OVERRIDE_KEY)
        found = Override.from_entry(entry) if entry else None
        return found if found is not None and found.until_us > self._clock.now_us() else None

    def history(self) -> list[dict[str, Any]]:
        """The last changes of level, oldest first."""
        stored = list(self._table.get(HISTORY_KEY) or ())
        return self._history if self._entry() is self._written is not None else stored

    async def set_override(self, override: Override | None) -> None:
        """Ask the owner of the control partition to hold a level, or (None) to let it go."""
        # A report like any other to a worker of an older version.
        entry = override.entry() if override else None
        await self._send(value={**self._report(), "override": entry}, within_s=_CONFIRM_S)

    def facts(self) -> dict[str, Any]:
        """Reason and age of the level, and this worker's own inputs."""
        entry = self._entry() or {}
        override = self.override
        return {
            "reason": entry.get("reason", ""),
            "since_us": entry.get("since_us"),
            "override": override.facts() if override else None,
            "memory_fraction": round(self._memory.fraction(), 4),
            "memory_level": self._own.level.name,
            "exempt": self._settings.exempt,
        }

    async def run(self) -> None:
        """Report for ever. A log that takes no report is waited for: the level stays as it is."""
        while True:
            try:
                await self._send(value=self._report())
            except K2Error as exc:
                log.warning("report_not_sent", error=exc.message, **exc.details)
            self._table.resend()
            self._look_after_memory()
            metrics.DEGRADATION_LEVEL.set(self.level)
            await self._clock.sleep(self._settings.interval_s)

    def _look_after_memory(self) -> None:
        moved = self._own.update(Inputs(0, self._memory.fraction()))
        if moved is not None:
            log.warning("memory_level", before=moved.before.name, after=moved.after.name,
                        reason=moved.reason)  # fmt: skip
        if self._own.level >= Level.GRACEFUL:
            self._ease()

    def _report(self) -> dict[str, Any]:
        exempt = self._settings.exempt
        return {
            "worker": self._worker_id,
            "lag": 0 if exempt else self._lag(),
            "memory": 0.0 if exempt or not self._moves_records else self._memory.fraction(),
            "summary": self.roster.own(),
        }

    def forget(self) -> None:
        """Another worker owns the control partition: what the log has is what holds."""
        self._table.forget()
        self._written = None

    def judge(self, report: Mapping[str, Any]) -> dict[str, Any] | None:
        """Take a report (on the owner of the control partition, inside its stream).

        Lag is the cluster's: partitions are spread, so the reports add up. Memory is each worker's
        own: of those that move records, whom shedding relieves, the fullest one counts. Returns the
        change of level it led to, if any.
        """
        if "override" in report:
            self._hold(report["override"])
        self.roster.note(report)
        self._reports[str(report["worker"])] = (
            self._clock.monotonic_s(),
            Inputs(int(report["lag"]), float(report["memory"])),
        )
        before = _held_of(self._entry())
        if before != self._controller.held:
            self._controller.take_over(before)
        transition = self._controller.hold(self._held(), self._inputs())
        if transition is not None:
            return self._publish(transition)
        if self._controller.held != before:
            # The same level, held by something else: the next owner has to know by what.
            self._write(dict(self._entry() or {}), self.history())
        return None

    async def announce(self, event: Mapping[str, Any]) -> None:
        """Write a change of level to the topic of events."""
        if self._announce is None:
            return
        try:
            await self._announce(value=dict(event))
        except K2Error as exc:
            # The level itself is in the table; the event is for those who listen.
            log.warning("level_not_announced", error=exc.message, **exc.details)

    def _hold(self, entry: Mapping[str, Any] | None) -> None:
        self._table[OVERRIDE_KEY] = entry
        log.warning("degradation_override", override=entry)

    def _held(self) -> tuple[Level, str] | None:
        override = self.override
        if override is None:
            return None
        return override.level, f"set by {override.by}: {override.reason}"

    def _inputs(self) -> Inputs:
        now_s = self._clock.monotonic_s()
        self._reports = {
            worker: entry for worker, entry in self._reports.items() if now_s - entry[0] <= FORGET_S
        }
        known = [entry for _, entry in self._reports.values()]
        return Inputs(sum(e.lag for e in known), max(e.memory for e in known))

    def _publish(self, transition: Transition) -> dict[str, Any]:
        event = {
            "before": transition.before.name,
            "after": transition.after.name,
            "reason": transition.reason,
            "lag": transition.inputs.lag,
            "memory": round(transition.inputs.memory, 4),
            "at_us": transition.at_us,
        }
        entry = {"reason": transition.reason, "since_us": transition.at_us}
        self._write(entry, [*self.history(), event][-_HISTORY:])
        metrics.DEGRADATION_TRANSITIONS.labels(transition.before.name, transition.after.name).inc()
        log.warning("degradation_level", **event)
        return event

    def _write(self, entry: dict[str, Any], history: list[dict[str, Any]]) -> None:
        """The entry of the level, with what holds it, and its history."""
        held = self._controller.held
        number = (self._entry() or {}).get("number", 0) + 1
        entry = {**entry, "level": int(held.level), "held": _entry_of(held), "number": number}
        self._table[KEY], self._table[HISTORY_KEY] = entry, history
        self._written, self._history = entry, history


def _entry_of(held: Held) -> dict[str, int | None]:
    """Plain numbers, as the table's changelog is JSON."""
    return {name: None if at is None else int(at) for name, at in held._asdict().items()}


def _held_of(entry: Mapping[str, Any] | None) -> Held:
    """What holds the level of an entry; an older version's does not say, so lag does."""
    if entry is None:
        return Held()
    held = entry.get("held")
    if held is None:
        return Held(lag=Level(entry["level"]))
    hand = held["hand"]
    return Held(Level(held["lag"]), Level(held["memory"]), None if hand is None else Level(hand))
