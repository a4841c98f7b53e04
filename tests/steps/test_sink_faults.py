"""Sink: once in the lake, whatever fails, waits or leaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from faust.types import TP

from k2.errors import DecodeError, LakeError, StaleWriterError
from k2.lake.tables import TABLES
from k2.lake.vector import Position, Vector
from k2.lake.writer import CommitResult, LakeWriter
from k2.lakehouse import Lakehouse
from k2.pipeline.sink import SinkPolicy
from k2.testing.catalog import Fault, FaultyCatalog
from k2.testing.clock import eventually, turns
from tests.steps.parts import (
    TRADES,
    ids_stored,
    stored,
)
from tests.steps.sink_bench import (
    HOME,
    Bench,
    bench,
    btc,
    place,
)

__all__ = ["bench"]


def broken(lake: Lakehouse, *faults: Fault, retry_s: float = 60.0) -> LakeWriter:
    catalog = FaultyCatalog(lake.catalog, faults)
    return LakeWriter(
        catalog,  # type: ignore[arg-type]
        TABLES["trades"],
        retry_s=retry_s,
        wait=lambda _seconds: None,
    )


async def test_a_commit_that_fails_raises_and_keeps_its_rows(bench: Bench) -> None:
    bench.writers = {
        "trades": broken(bench.lake, Fault.LOST_REQUEST, Fault.LOST_REQUEST, retry_s=0)
    }
    bench.restart()
    await bench.write(*btc(1, 2, 3))
    await bench.read_on()
    with pytest.raises(LakeError):
        await bench.step.flush()
    assert (bench.step.ceiling(HOME), bench.step.pending_rows) == (None, 3)
    assert stored(bench.lake) == []
    with pytest.raises(LakeError):
        await bench.step.flush()


@pytest.mark.parametrize("fault", [Fault.LOST_REPLY, Fault.SERVER_ERROR, Fault.CONFLICT])
async def test_a_commit_whose_answer_is_lost_or_a_conflict_lands_once(
    bench: Bench, fault: Fault
) -> None:
    bench.writers = {"trades": broken(bench.lake, fault)}
    bench.restart()
    await bench.write(*btc(1, 2, 3))
    await bench.read_on()
    await bench.step.flush()
    assert bench.step.ceiling(HOME) == 3
    assert ids_stored(bench.lake) == btc(1, 2, 3)


async def test_a_commit_task_that_fails_reports_to_the_worker(bench: Bench) -> None:
    bench.writers = {"trades": broken(bench.lake, *[Fault.LOST_REQUEST] * 3, retry_s=0)}
    bench.restart()
    bench.step.start()
    await bench.write(*btc(*range(1, 13)))
    await bench.read_on()
    await eventually(lambda: bench.failures)
    assert isinstance(bench.failures[0], LakeError)
    assert bench.step.ceiling(HOME) is None
    for task in bench.step._tasks:
        task.cancel()
    await asyncio.gather(*bench.step._tasks, return_exceptions=True)


async def test_a_zombie_stops_when_another_worker_has_moved_on(bench: Bench) -> None:
    await bench.write(*btc(1, 2, 3))
    await bench.read_on()
    zombie = bench.step
    bench.restart()
    await bench.read_on()
    await bench.step.flush()
    with pytest.raises(StaleWriterError):
        await zombie.flush()
    assert zombie.ceiling(HOME) is None
    assert ids_stored(bench.lake) == btc(1, 2, 3)


async def test_a_partition_assigned_anew_drops_what_it_held(bench: Bench) -> None:
    await bench.write(*btc(1, 2, 3))
    await bench.read_on()
    assert await bench.step.positions(frozenset({HOME})) == {}
    assert bench.step.pending_rows == 0
    await bench.add()
    await bench.step.flush()
    assert ids_stored(bench.lake) == btc(1, 2, 3)


@dataclass
class SlowWriter:
    """A writer whose commits wait until they may go."""

    writer: LakeWriter
    may_go: threading.Event = field(default_factory=threading.Event)

    def vector(self) -> Vector:
        return self.writer.vector()

    def commit(self, *arguments: Any) -> CommitResult:
        assert self.may_go.wait(10)
        return self.writer.commit(*arguments)


@pytest.fixture
def slow(bench: Bench) -> Iterator[SlowWriter]:
    """The trades of a restarted bench are committed by it."""
    made = SlowWriter(bench.lake.writers["trades"])
    bench.writers = {"trades": made}  # type: ignore[dict-item]
    bench.restart()
    yield made
    made.may_go.set()


async def test_positions_wait_for_the_commit_on_its_way(bench: Bench, slow: SlowWriter) -> None:
    await bench.write(*btc(1, 2, 3))
    await bench.read_on()
    flushing = asyncio.ensure_future(bench.step.flush())
    await turns()
    asking = asyncio.ensure_future(bench.step.positions(frozenset({HOME})))
    await turns()
    assert not asking.done()
    slow.may_go.set()
    assert await asking == {HOME: 3}, "not the position from before it: the rows would come twice"
    await flushing
    assert ids_stored(bench.lake) == btc(1, 2, 3)


async def test_who_gives_up_waiting_for_a_commit_takes_nothing_of_it_along(
    bench: Bench, slow: SlowWriter
) -> None:
    await bench.write(*btc(1, 2, 3))
    await bench.read_on()
    flushing = asyncio.ensure_future(bench.step.flush())
    await turns()
    flushing.cancel()
    await asyncio.gather(flushing, return_exceptions=True)
    assert bench.step.pending_rows == 3, "the thread goes on: neither stored nor given up"
    again = asyncio.ensure_future(bench.step.flush())
    await turns()
    slow.may_go.set()
    await again
    assert ids_stored(bench.lake) == btc(1, 2, 3)
    assert (bench.step.ceiling(HOME), bench.step.pending_rows) == (3, 0)
    assert bench.failures == []


async def test_partitions_leave_without_waiting_for_the_lake(
    bench: Bench, slow: SlowWriter
) -> None:
    await bench.write(*btc(1, 2, 3))
    await bench.read_on()
    leaving = asyncio.ensure_future(bench.step.revoke({HOME}))
    await turns()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert bench.step.read_to() == {}
    await bench.write(*btc(4))
    await bench.add(3)  # was on its way to the agent
    assert bench.tokens.acked == [1, 1]
    slow.may_go.set()
    assert await bench.read_on() == {HOME: 3}, "the commit on its way was waited for"
    await bench.step.flush()
    assert ids_stored(bench.lake) == btc(1, 2, 3, 4)


async def test_a_partition_that_left_frees_the_reader_that_waited_for_room(bench: Bench) -> None:
    bench.policy = SinkPolicy(batch_rows=10_000, interval_s=1e9, min_interval_s=0.0, max_bytes=1)
    bench.restart()
    await bench.write(*btc(1, 2))
    adding = asyncio.ensure_future(bench.read_on())
    await eventually(lambda: bench.step.pending_rows == 2)
    bench.step.keep(frozenset())
    await adding
    assert (bench.step.pending_rows, bench.step.read_to()) == (0, {})


async def test_what_was_being_decoded_when_its_partition_left_is_not_held(bench: Bench) -> None:
    await bench.write(*btc(*range(1, 1_501)), max_records=700)
    adding = asyncio.ensure_future(bench.read_on())
    await eventually(lambda: bench.tokens.made)
    bench.step.keep(frozenset())
    await bench.step.positions(frozenset({HOME}))
    await adding
    assert (bench.tokens.acked, bench.step.pending_rows) == ([1], 0)
    await bench.add()
    await bench.step.flush()
    assert ids_stored(bench.lake) == btc(*range(1, 1_501))


async def test_a_stale_partition_that_left_does_not_stop_the_others(
    bench: Bench, slow: SlowWriter
) -> None:
    other = TP(TRADES.validated, 1)
    await bench.write(*btc(1, 2, 3))
    await bench.write(("ETHUSDT", 1), partition=1)
    for tp in (HOME, other):
        await bench.read_on(tp)
    flushing = asyncio.ensure_future(bench.step.flush())
    await turns()
    bench.step.keep({other})
    # Its new owner did not wait for us.
    slow.writer.commit(None, {place(): None}, {place(): Position(2, 1)})
    slow.may_go.set()
    await flushing
    assert ids_stored(bench.lake) == [("ETHUSDT", 1)]
    assert bench.failures == []


async def test_a_record_that_does_not_decode_stops_the_sink(bench: Bench) -> None:
    await bench.write(*btc(1, 2))
    batch = bench.log.batch(*HOME)
    batch.values[1] = b"\x00\x00\x00\x00\x01?"
    await bench.step.positions(frozenset({HOME}))
    with pytest.raises(DecodeError, match="log offset 1 does not decode"):
        await bench.step.add(batch, bench.tokens.new())
    assert bench.tokens.acked == [0]


async def test_many_rows_are_decoded_in_a_thread_with_the_same_result(bench: Bench) -> None:
    await bench.write(*btc(*range(1, 1_501)), max_records=700)
    await bench.read_on()
    await bench.step.flush()
    assert ids_stored(bench.lake) == btc(*range(1, 1_501))
