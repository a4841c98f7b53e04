"""Control: everybody's lag and memory become one level."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from structlog.testing import capture_logs

from k2.degradation.levels import Level
from k2.degradation.override import Override
from k2.errors import InvalidParameter, K2Error, LogError
from k2.settings import Degradation
from k2.steps.control import KEY, ControlStep
from k2.testing.clock import ManualClock, turns
from k2.testing.shared import SharedEntries

LAGS = {"lag_soft": 100, "lag_graceful": 500, "lag_aggressive": 1_000, "lag_break": 5_000}
HUGE_MB = 1_000_000


@dataclass
class Worker:
    """One worker's control step; the table is the cluster's."""

    clock: ManualClock
    table: SharedEntries
    name: str = "w1"
    options: dict[str, Any] = field(default_factory=dict)
    lag: int = 0
    sent: list[dict[str, Any]] = field(default_factory=list)
    waited_s: list[float] = field(default_factory=list)
    refused: K2Error | None = None
    step: ControlStep = field(init=False)

    def __post_init__(self) -> None:
        options = {"memory_limit_mb": HUGE_MB, "cooldown_s": 30.0, **LAGS, **self.options}
        self.step = ControlStep(
            Degradation(_env_file=None, **options),
            self.table,
            self._send,
            lambda: self.lag,
            self.clock,
            self.name,
        )

    async def _send(self, *, value: dict[str, Any], within_s: float = 0.0) -> None:
        self.waited_s.append(within_s)
        if self.refused is not None:
            raise self.refused
        self.sent.append(value)

    def report(self, worker: str, lag: int = 0, memory: float = 0.0) -> Level:
        """Judge a report as the owner of the control partition; the level after it."""
        self.step.judge({"worker": worker, "lag": lag, "memory": memory})
        return self.step.level


@pytest.fixture
def owner(clock: ManualClock) -> Worker:
    return Worker(clock, SharedEntries())


def test_without_an_entry_the_level_is_normal(owner: Worker) -> None:
    assert owner.step.level is Level.NORMAL
    facts = owner.step.facts()
    assert (facts["reason"], facts["since_us"], facts["exempt"]) == ("", None, False)
    assert 0 < facts["memory_fraction"] < 1


def test_the_lags_of_all_workers_add_up(owner: Worker) -> None:
    assert owner.report("w1", lag=60) is Level.NORMAL
    assert owner.report("w2", lag=60) is Level.SOFT
    assert owner.table[KEY]["level"] == Level.SOFT
    assert "lag 120 messages (trigger 100)" in owner.step.facts()["reason"]
    assert owner.step.facts()["since_us"] == owner.clock.now_us()


async def test_what_the_owner_wrote_before_does_not_come_back(owner: Worker) -> None:
    """Its table takes its own writes once more from the changelog, a while later."""
    owner.report("w1", lag=150)
    first = dict(owner.table)
    await owner.clock.advance(60)
    owner.report("w1", lag=5_500)
    owner.table.update(first)
    assert owner.step.level is Level.CIRCUIT_BREAK
    assert [change["after"] for change in owner.step.history()] == ["SOFT", "CIRCUIT_BREAK"]
    other = Worker(owner.clock, SharedEntries(first), "w2")
    other.table[KEY] = {**first[KEY], "number": 2}
    await owner.clock.advance(60)
    other.report("w2", lag=0)
    owner.table.update(other.table)
    assert owner.step.level is other.step.level
    assert owner.step.level is not Level.CIRCUIT_BREAK


def test_an_owner_of_an_older_version_is_believed(owner: Worker) -> None:
    owner.report("w1", lag=5_500)
    owner.table[KEY] = {"level": int(Level.SOFT), "reason": "", "since_us": 1}
    assert owner.step.level is Level.SOFT


def test_a_new_report_of_a_worker_replaces_its_last(owner: Worker) -> None:
    owner.report("w1", lag=60)
    assert owner.report("w1", lag=60) is Level.NORMAL


def test_the_fullest_memory_counts(owner: Worker) -> None:
    owner.report("w1", memory=0.3)
    assert owner.report("w2", memory=0.85) is Level.GRACEFUL
    assert owner.report("w1", memory=0.3) is Level.GRACEFUL


async def test_a_worker_that_reports_no_more_is_forgotten(owner: Worker) -> None:
    owner.report("gone", lag=5_000)
    assert owner.step.level is Level.CIRCUIT_BREAK
    for _ in range(4):
        await owner.clock.advance(10.0)
        owner.report("w1", lag=0)
    assert owner.step.level is Level.NORMAL


async def test_the_level_falls_after_its_cooldown(owner: Worker) -> None:
    owner.report("w1", lag=600)
    for _ in range(3):
        assert owner.report("w1", lag=0) is Level.GRACEFUL
        await owner.clock.advance(9.0)
    await owner.clock.advance(9.0)
    assert owner.report("w1", lag=0) is Level.NORMAL
    assert "recovered" in owner.step.facts()["reason"]


async def test_every_worker_reads_the_level_its_owner_wrote(owner: Worker) -> None:
    other = Worker(owner.clock, owner.table, "w2")
    owner.report("w2", lag=1_000)
    assert other.step.level is Level.AGGRESSIVE


async def test_a_new_owner_goes_on_from_the_level_in_the_table(owner: Worker) -> None:
    owner.report("w1", lag=1_000)
    other = Worker(owner.clock, owner.table, "w2")
    assert other.report("w2", lag=450) is Level.AGGRESSIVE, "it fell below no trigger for long"
    await owner.clock.advance(30.0)
    assert other.report("w2", lag=450) is Level.SOFT


async def test_a_new_owner_knows_what_holds_the_level(owner: Worker) -> None:
    owner.report("w1", lag=1_000, memory=0.85)
    await owner.clock.advance(30.0)
    assert owner.report("w1", lag=0, memory=0.85) is Level.GRACEFUL
    other = Worker(owner.clock, owner.table, "w2")
    other.report("w2", lag=0, memory=0.75)
    await owner.clock.advance(30.0)
    assert other.report("w2", lag=0, memory=0.75) is Level.GRACEFUL, "above 0.9 of its trigger"
    assert other.report("w2", lag=0, memory=0.65) is Level.NORMAL


async def test_a_new_owner_knows_what_holds_a_level_that_stayed(owner: Worker) -> None:
    owner.report("w1", lag=500, memory=0.5)
    owner.report("w1", lag=500, memory=0.85)
    await owner.clock.advance(30.0)
    owner.report("w1", lag=0, memory=0.85)
    other = Worker(owner.clock, owner.table, "w2")
    other.report("w2", lag=300, memory=0.65)
    await owner.clock.advance(30.0)
    assert other.report("w2", lag=300, memory=0.65) is Level.SOFT, "lag holds nothing any more"
    assert [event["after"] for event in other.step.history()] == ["GRACEFUL", "SOFT"]


async def test_a_level_of_an_older_version_is_not_kept_up_by_memory(owner: Worker) -> None:
    owner.table[KEY] = {"level": int(Level.SOFT), "reason": "", "since_us": 1}
    owner.report("w1", memory=0.65)
    await owner.clock.advance(30.0)
    assert owner.report("w1", memory=0.65) is Level.NORMAL


async def test_every_worker_reports_lag_and_memory(owner: Worker) -> None:
    owner.lag = 42
    task = asyncio.create_task(owner.step.run())
    await turns()
    owner.lag = 43
    await owner.clock.advance(1.0)
    task.cancel()
    assert [(r["worker"], r["lag"]) for r in owner.sent] == [("w1", 42), ("w1", 43)]
    assert all(0 < report["memory"] < 1 for report in owner.sent)


async def test_a_log_that_takes_no_report_is_waited_for(owner: Worker) -> None:
    owner.refused = LogError("k2.degradation.control did not take a record")
    task = asyncio.create_task(owner.step.run())
    with capture_logs() as said:
        await turns()
    assert [(line["event"], line["log_level"]) for line in said] == [("report_not_sent", "warning")]
    owner.refused = None
    await owner.clock.advance(1.0)
    assert len(owner.sent) == 1
    assert not task.done()
    task.cancel()


async def test_what_the_log_refused_is_written_again_with_each_report(owner: Worker) -> None:
    running = asyncio.ensure_future(owner.step.run())
    await owner.clock.advance(2.5)
    running.cancel()
    assert owner.table.resent == len(owner.sent) == 3


def test_who_does_not_own_the_partition_any_more_believes_the_log(owner: Worker) -> None:
    before = SharedEntries(owner.table)
    owner.report("w1", lag=5_500)
    owner.step.forget()
    assert owner.table.forgotten == 1
    # The log never had what was written.
    owner.table.clear()
    owner.table.update(before)
    assert owner.step.level is Level.NORMAL


async def test_what_is_set_by_hand_has_to_be_in_the_log(owner: Worker) -> None:
    await owner.step.set_override(None)
    assert owner.waited_s[-1] > 0
    owner.refused = LogError("the disk is full")
    with pytest.raises(LogError):
        await owner.step.set_override(None)


async def test_an_exempt_worker_reports_nothing_to_worry_about(clock: ManualClock) -> None:
    exempt = Worker(clock, SharedEntries(), options={"exempt": True, "memory_limit_mb": 1})
    exempt.lag = 10**9
    task = asyncio.create_task(exempt.step.run())
    await turns()
    task.cancel()
    (report,) = exempt.sent
    assert (report["lag"], report["memory"]) == (0, 0.0)
    exempt.step.judge(report)
    assert exempt.step.level is Level.NORMAL


def test_an_exempt_owner_still_judges_the_others(clock: ManualClock) -> None:
    exempt = Worker(clock, SharedEntries(), options={"exempt": True})
    assert exempt.report("w2", lag=1_000) is Level.AGGRESSIVE


async def test_reports_carry_a_summary_and_those_of_an_older_version_none(
    clock: ManualClock,
) -> None:
    table: dict[str, Any] = {}
    worker = Worker(clock, table)
    worker.step = ControlStep(
        Degradation(_env_file=None, **LAGS), table, worker._send, lambda: 0, clock, "w1",
        summary=lambda: {"host": "h", "api": "http://h:8000", "rows": 5},
    )  # fmt: skip
    await worker.step.set_override(None)
    worker.step.judge(worker.sent[-1])
    assert worker.report("older", lag=150) is Level.SOFT, "its lag counts as before"
    assert [one["worker"] for one in worker.step.roster.all()] == ["w1"]
    # An owner of an older version looks at these alone.
    assert worker.sent[-1].keys() == {"worker", "lag", "memory", "override", "summary"}
    assert table["workers"]["workers"]["w1"]["rows"] == 5
    assert table[KEY]["level"] == Level.SOFT


def by_hand(owner: Worker, level: str, minutes: float = 10) -> Override:
    return Override.of(level, minutes, "rehearsal", "ops", owner.clock.now_us())


async def test_a_level_set_by_hand_holds_against_the_triggers_and_ends_by_itself(
    owner: Worker,
) -> None:
    await owner.step.set_override(by_hand(owner, "graceful"))
    change = owner.step.judge(owner.sent[-1])
    assert change is not None
    assert (change["before"], change["after"]) == ("NORMAL", "GRACEFUL")
    assert change["reason"] == "set by ops: rehearsal"
    assert owner.report("w1", lag=5_000) is Level.GRACEFUL, "higher triggers wait"
    assert owner.step.facts()["override"]["level"] == "GRACEFUL"
    await owner.clock.advance(601)
    assert owner.report("w1", lag=100) is Level.SOFT, "no cooldown after it"
    assert owner.step.facts()["override"] is None
    assert [event["after"] for event in owner.step.history()] == ["GRACEFUL", "SOFT"]


async def test_it_can_be_let_go_before_its_time_and_by_another_owner(owner: Worker) -> None:
    await owner.step.set_override(by_hand(owner, "CIRCUIT_BREAK"))
    owner.step.judge(owner.sent[-1])
    heir = Worker(owner.clock, owner.table, "w2")
    assert heir.report("w2") is Level.CIRCUIT_BREAK, "it outlives the owner"
    await heir.step.set_override(None)
    heir.step.judge(heir.sent[-1])
    assert heir.step.level is Level.NORMAL


async def test_an_override_that_ended_while_nobody_judged_leaves_no_level_behind(
    owner: Worker,
) -> None:
    await owner.step.set_override(by_hand(owner, "AGGRESSIVE", minutes=1))
    owner.step.judge(owner.sent[-1])
    await owner.clock.advance(120)
    heir = Worker(owner.clock, owner.table, "w2")
    heir.report("w2")
    await owner.clock.advance(31)
    assert heir.report("w2") is Level.NORMAL


@pytest.mark.parametrize(
    ("level", "minutes", "reason", "named"),
    [
        ("HIGH", 1, "x", "level"),
        (2, 1, "x", "level"),
        ("SOFT", 0, "x", "minutes"),
        ("SOFT", 1e9, "x", "minutes"),
        ("SOFT", float("nan"), "x", "minutes"),
        ("SOFT", True, "x", "minutes"),
        ("SOFT", "5", "x", "minutes"),
        ("SOFT", 1, "  ", "reason"),
        ("SOFT", 1, None, "reason"),
    ],
)
def test_a_wrong_override_is_refused_by_name(
    level: object, minutes: object, reason: object, named: str
) -> None:
    with pytest.raises(InvalidParameter) as refused:
        Override.of(level, minutes, reason, "ops", 0)
    assert refused.value.details["parameter"] == named


async def test_a_change_is_announced_and_one_that_is_not_taken_is_only_said(
    clock: ManualClock,
) -> None:
    said: list[Any] = []

    async def announce(*, value: dict[str, Any]) -> None:
        said.append(value)
        raise LogError("not taken")

    owner = Worker(clock, SharedEntries())
    owner.step._announce = announce
    owner.step.judge({"worker": "w1", "lag": 100, "memory": 0.0})
    await owner.step.announce(owner.step.history()[-1])
    assert said == owner.step.history()
    assert said[0]["lag"] == 100


async def test_a_worker_that_moves_no_records_degrades_only_itself(clock: ManualClock) -> None:
    """A full query worker refuses queries; it must not make the others put records off."""
    eased: list[int] = []
    full = Worker(clock, SharedEntries(), options={"memory_limit_mb": 1})
    full.step = ControlStep(
        Degradation(_env_file=None, memory_limit_mb=1), full.table, full._send, lambda: 7, clock,
        "q1", moves_records=False, ease=lambda: eased.append(1),
    )  # fmt: skip
    task = asyncio.create_task(full.step.run())
    await turns()
    task.cancel()
    (report,) = full.sent
    assert (report["lag"], report["memory"]) == (7, 0.0)
    full.step.judge(report)
    assert full.step.level is Level.NORMAL
    assert full.step.here is Level.CIRCUIT_BREAK
    assert full.step.facts()["memory_level"] == "CIRCUIT_BREAK"
    assert eased, "what can be made again is let go first"


def test_memory_at_soft_does_not_keep_what_was_put_off_waiting(owner: Worker) -> None:
    assert owner.report("w1", memory=0.75) is Level.SOFT
    assert owner.step.bringing is Level.NORMAL
    owner.report("w1", memory=0.85)
    assert owner.step.bringing is Level.GRACEFUL, "it would be put off again"
    other = Worker(owner.clock, SharedEntries())
    assert other.report("w1", lag=100) is Level.SOFT
    assert other.step.bringing is Level.SOFT, "lag comes first"
