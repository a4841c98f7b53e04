"""Rounds of maintenance on a real lake."""

import asyncio
import threading

import pytest
from prometheus_client import REGISTRY

from k2.lake.tables import TRADES
from k2.lake.writer import LakeWriter
from k2.maintenance.keeper import Keeper, KeeperOptions
from k2.maintenance.plan import CompactionPolicy
from k2.setting_lake import Maintain
from k2.steps.maintain import MaintainStep
from k2.testing.catalog import FaultyCatalog
from tests.lake.conftest import catalog, lake_settings
from tests.maintenance.lakes import fill, live_files, stored

__all__ = ["catalog", "lake_settings"]


class Clock:
    """Time that passes only when somebody sleeps; after `rounds` sleeps the sleeper is woken no
    more."""

    def __init__(self, rounds=1):
        self.s, self.rounds, self.done = 0.0, rounds, asyncio.Event()

    def now_us(self):
        return 1_800_000_000_000_000 + int(self.s * 1e6)

    def monotonic_s(self):
        return self.s

    async def sleep(self, seconds):
        self.s += seconds
        self.rounds -= 1
        if self.rounds < 0:
            self.done.set()
            await asyncio.Event().wait()


def step_on(catalog, clock, elected=lambda: True, calm=lambda: True):
    options = KeeperOptions(CompactionPolicy(min_files=4), retry_s=5.0)
    keeper = Keeper(catalog, TRADES, options, clock=clock, wait=lambda _: None)
    return MaintainStep(Maintain(), {"trades": keeper}, elected, clock, calm)


async def rounds_of(step, clock):
    running = asyncio.create_task(step.run())
    await clock.done.wait()
    running.cancel()


def sample(name, **labels):
    return REGISTRY.get_sample_value(name, {"table": "trades", **labels})


async def test_the_elected_worker_compacts_and_measures(catalog):
    end, clock = fill(catalog, 6), Clock()
    files = len(live_files(catalog))
    await rounds_of(step_on(catalog, clock), clock)
    assert stored(catalog) == list(range(end))
    assert len(live_files(catalog)) < files / 3
    assert sample("k2_lake_files") == len(live_files(catalog))
    assert sample("k2_lake_partition_files_max") <= 2
    assert sample("k2_lake_snapshots") == 7


async def test_another_worker_does_nothing(catalog):
    fill(catalog, 6)
    files, clock = live_files(catalog).keys(), Clock(rounds=3)
    await rounds_of(step_on(catalog, clock, elected=lambda: False), clock)
    assert live_files(catalog).keys() == files


async def test_a_failed_round_is_counted_and_done_again(catalog):
    end = fill(catalog, 6)
    files, clock, faulty = len(live_files(catalog)), Clock(rounds=2), FaultyCatalog(catalog)
    faulty.load_failures = 1
    failed = sample("k2_maintenance_failures_total") or 0
    await rounds_of(step_on(faulty, clock), clock)
    assert sample("k2_maintenance_failures_total") == failed + 1
    assert len(live_files(catalog)) < files / 3
    assert stored(catalog) == list(range(end))


def test_a_stopped_step_begins_nothing(catalog):
    fill(catalog, 6)
    files, clock = live_files(catalog).keys(), Clock()
    step = step_on(catalog, clock)
    step.stop()
    step.round("trades")
    assert live_files(catalog).keys() == files


def test_while_records_are_put_off_nothing_is_begun_but_the_lake_is_measured(catalog):
    end = fill(catalog, 6)
    before = len(live_files(catalog))
    answers = iter([True] * 4 + [False] * 99)
    step_on(catalog, Clock(), calm=lambda: next(answers)).round("trades")
    half = len(live_files(catalog))
    assert half < before
    step_on(catalog, Clock(), calm=lambda: False).round("trades")
    assert sample("k2_lake_files") == len(live_files(catalog)) == half
    step_on(catalog, Clock()).round("trades")
    assert len(live_files(catalog)) < half
    assert stored(catalog) == list(range(end))


@pytest.mark.parametrize("after", [0, 2])
def test_a_merge_that_is_stopped_commits_what_is_done(catalog, after):
    end = fill(catalog, 6)
    options = KeeperOptions(CompactionPolicy(min_files=4))
    keeper = Keeper(catalog, TRADES, options)
    asked = iter([*[False] * after, *[True] * 99])
    report = keeper.compact(stopping=lambda: next(asked))
    assert report.groups == after
    assert report.left > 10
    assert stored(catalog) == list(range(end))


def test_two_elected_workers_do_no_harm(catalog):
    """For a moment after a rebalance both may believe it."""
    LakeWriter(catalog, TRADES)
    end = fill(catalog, 6)
    threads = [
        threading.Thread(target=step_on(catalog, Clock()).round, args=("trades",)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stored(catalog) == list(range(end))
