"""Roster: what every worker last said of itself, on all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from k2.steps.roster import KEY, Roster
from k2.testing.clock import ManualClock


class Table(dict[str, Any]):
    """The global table; what is written to it goes through its changelog as JSON."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    def __setitem__(self, key: str, value: Any) -> None:
        self.writes += 1
        super().__setitem__(key, orjson.loads(orjson.dumps(value)))


@dataclass
class Worker:
    """One worker's roster; the table is the cluster's."""

    clock: ManualClock
    table: Table
    name: str = "w1"
    told: dict[str, Any] = field(default_factory=dict)
    roster: Roster = field(init=False)

    def __post_init__(self) -> None:
        self.told = {"host": self.name, "api": "http://k2:8000", "frames": 0, **self.told}
        self.roster = Roster(self.table, self.clock, self.name, lambda: dict(self.told))

    def report(self) -> dict[str, Any]:
        return {"worker": self.name, "lag": 0, "memory": 0.0, "summary": self.roster.own()}

    def shown(self) -> dict[str, int]:
        return {one["worker"]: one.get("frames", 0) for one in self.roster.all()}


@pytest.fixture
def owner(clock: ManualClock) -> Worker:
    return Worker(clock, Table())


@pytest.fixture
def other(owner: Worker) -> Worker:
    return Worker(owner.clock, owner.table, "w2")


async def reported(owner: Worker, *workers: Worker, times: int = 3) -> None:
    """Everybody reports once a second; the owner judges."""
    for _ in range(times):
        for one in workers:
            owner.roster.note(one.report())
        await owner.clock.advance(1.0)


async def test_every_worker_knows_the_others_and_itself_as_it_is_now(
    owner: Worker, other: Worker
) -> None:
    owner.told["frames"], other.told["frames"] = 1, 2
    await reported(owner, owner, other)
    assert owner.shown() == other.shown() == {"w1": 1, "w2": 2}
    owner.told["frames"] = 10
    assert owner.shown()["w1"] == 10
    first, second = other.roster.all()
    assert (first["worker"], first["here"], first["age_s"]) == ("w2", True, 0.0)
    assert (second["worker"], second["here"], second["age_s"]) == ("w1", False, 1.0)


async def test_a_worker_alone_is_known_before_anybody_owns_the_partition(other: Worker) -> None:
    assert other.shown() == {"w2": 0}


async def test_what_changes_is_written_every_two_seconds_and_what_does_not_every_ten(
    owner: Worker,
) -> None:
    for second in range(20):
        owner.told["frames"] = second
        await reported(owner, owner, times=1)
    assert owner.table.writes == 10
    await reported(owner, owner, times=20)
    assert owner.table.writes == 12, "the last change, and once to say that it lives"


async def test_a_worker_whose_reports_stop_leaves(owner: Worker, other: Worker) -> None:
    await reported(owner, owner, other)
    await reported(owner, owner, times=7)
    assert owner.shown() == {"w1": 0, "w2": 0}
    await reported(owner, owner, times=5)
    assert owner.shown() == {"w1": 0}


async def test_a_new_owner_goes_on_from_what_the_one_before_wrote(
    owner: Worker, other: Worker
) -> None:
    third = Worker(owner.clock, owner.table, "w3")
    await reported(owner, owner, other, third)
    await reported(other, other, times=1)
    assert set(owner.table[KEY]["workers"]) == {"w1", "w2", "w3"}
    await reported(other, other, third, times=12)
    assert set(owner.table[KEY]["workers"]) == {"w2", "w3"}, "the old owner reports no more"
    third.told["frames"] = 7
    await reported(owner, owner, other, third)
    assert owner.shown() == {"w1": 0, "w2": 0, "w3": 7}, "and this one knew the others before"


async def test_an_owner_that_starts_again_under_its_name_knows_who_was_there(
    owner: Worker, other: Worker
) -> None:
    await reported(owner, owner, other)
    again = Worker(owner.clock, owner.table)
    again.roster.note(again.report())
    assert set(owner.table[KEY]["workers"]) == {"w1", "w2"}


async def test_a_worker_that_starts_again_replaces_the_one_at_its_address(owner: Worker) -> None:
    before = Worker(owner.clock, owner.table, "k-1", {"host": "k"})
    await reported(owner, owner, before)
    after = Worker(owner.clock, owner.table, "k-2", {"host": "k", "frames": 5})
    assert after.shown() == {"k-2": 5, "w1": 0}, "before it reports"
    await reported(owner, owner, after)
    assert owner.shown() == {"w1": 0, "k-2": 5}


async def test_reports_of_an_older_version_tell_nothing_of_their_worker(owner: Worker) -> None:
    owner.roster.note({"worker": "old", "lag": 3, "memory": 0.5})
    await reported(owner, owner)
    assert owner.shown() == {"w1": 0}


async def test_an_owner_of_an_older_version_leaves_what_is_there_until_it_is_too_old(
    owner: Worker, other: Worker
) -> None:
    await reported(owner, owner, other)
    await owner.clock.advance(290.0)
    assert other.shown() == {"w2": 0, "w1": 0}
    await owner.clock.advance(15.0)
    assert other.shown() == {"w2": 0}


async def test_many_sessions_are_cut_and_counted(owner: Worker, clock: ManualClock) -> None:
    sessions = [{"session": f"s-{number}"} for number in range(50)]
    many = [
        Worker(clock, owner.table, f"s{number}", {"sessions": sessions, "more_sessions": 2})
        for number in range(39)
    ]
    await reported(owner, owner, *many)
    listed = [one for one in owner.roster.all() if not one["here"]]
    assert {len(one["sessions"]) for one in listed} == {25}
    assert {one["more_sessions"] for one in listed} == {27}
