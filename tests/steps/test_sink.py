"""Sink: once in the lake, whatever fails; where to start is what the lake says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from faust.types import TP

from k2.codec.schemas import kind_of
from k2.codecs import Codecs
from k2.errors import CoverHoleError, DecodeError, LakeError, StaleWriterError
from k2.lake.tables import TABLES
from k2.lake.vector import Place, Position, Vector
from k2.lake.writer import CommitResult, LakeWriter
from k2.lakehouse import Lakehouse
from k2.pipeline.groups import Cut, Records, in_groups
from k2.pipeline.sink import SinkBuffer, SinkPolicy
from k2.records import build
from k2.steps.sink import SinkStep
from k2.testing.catalog import Fault, FaultyCatalog
from k2.testing.clock import ManualClock, eventually, turns
from k2.testing.log import MemoryLog
from k2.topics import MarketTopic
from tests.steps.parts import (
    EPOCH,
    OTHER_EPOCH,
    QUOTES,
    TRADES,
    Record,
    Tokens,
    ids_stored,
    quote_rows,
    stored,
    trade_rows,
)

HOME = TP(TRADES.validated, 0)
POLICY = SinkPolicy(batch_rows=10, interval_s=5.0, min_interval_s=0.0)


@dataclass
class Bench:
    """A sink step over a log in memory and a real lake."""

    lake: Lakehouse
    codecs: Codecs
    clock: ManualClock
    log: MemoryLog
    policy: SinkPolicy = POLICY
    epoch: str = EPOCH
    tokens: Tokens = field(default_factory=Tokens)
    failures: list[BaseException] = field(default_factory=list)
    writers: dict[str, LakeWriter] = field(default_factory=dict)
    step: Any = None
    #: Next offset of the log of record, by partition of the validated topic.
    written: dict[TP, int] = field(default_factory=dict)

    def restart(self) -> None:
        """A new process over the same lake and log."""
        names = [
            name
            for topic in (TRADES, QUOTES)
            for name in (topic.validated, topic.gaps, topic.deferred)
        ]
        self.step = SinkStep(
            {name: kind_of(name) for name in names},
            {**self.lake.writers, **self.writers},
            {name: SinkBuffer(table.arrow_schema, self.policy) for name, table in TABLES.items()},
            {name: self.codecs.reader(name) for name in names},
            lambda _topic: self.epoch,
            self.clock,
            self.failures.append,
        )

    async def write(
        self,
        *records: Record,
        topic: MarketTopic = TRADES,
        partition: int = 0,
        first: int | None = None,
        epoch: str | None = None,
        max_records: int = 4,
    ) -> None:
        """Groups as the validate step writes them; `first` repeats or skips part of the log."""
        tp = TP(topic.validated, partition)
        first = self.written.get(tp, 0) if first is None else first
        rows = trade_rows if topic is TRADES else quote_rows
        values = self.codecs.of(topic.log).encode(rows(records, self.clock.now_us()))
        last = first + len(records) - 1
        for group in in_groups(
            Records(np.arange(first, last + 1), [s.encode() for s, _ in records], list(values)),
            topic=tp.topic,
            partition=partition,
            epoch=epoch or self.epoch,
            first=first,
            last=last,
            cut=Cut(max_records, 1_000_000),
        ):
            await self.log.send_batch(group)
        self.written[tp] = last + 1

    async def add(self, start: int = 0, tp: TP = HOME) -> None:
        """What a topic has from `start` on, as one event."""
        await self.step.add(self.log.batch(tp.topic, tp.partition, start), self.tokens.new())

    async def read_on(self, tp: TP = HOME) -> dict[TP, int]:
        """Ask for the position and read from there, as a worker does."""
        positions = await self.step.positions(frozenset({tp}))
        start = positions.get(tp, 0)
        if start < self.log.end(tp.topic, tp.partition):
            await self.add(start, tp)
        return positions


@pytest.fixture
async def bench(lake: Lakehouse, codecs: Codecs, clock: ManualClock, log: MemoryLog) -> Bench:
    made = Bench(lake, codecs, clock, log)
    made.restart()
    return made


def btc(*ids: int) -> list[Record]:
    return [("BTCUSDT", ident) for ident in ids]


def place(partition: int = 0, topic: str = TRADES.validated, epoch: str = EPOCH) -> Place:
    return Place(epoch, topic, partition)


async def test_what_is_held_is_acked_and_what_is_stored_may_be_committed(bench: Bench) -> None:
    await bench.write(*btc(1, 2, 3))
    assert await bench.read_on() == {}
    assert (bench.tokens.acked, bench.step.pending_rows) == ([1], 3)
    assert bench.step.ceiling(HOME) is None, "the lake has nothing of it yet"
    assert stored(bench.lake) == []
    await bench.step.flush()
    assert bench.step.pending_rows == 0
    assert bench.step.ceiling(HOME) == 3
    assert ids_stored(bench.lake) == btc(1, 2, 3)
    assert bench.step.vectors()["trades"].get(place()) == Position(3, 2)
    assert bench.lake.writers["trades"].vector().get(place()) == Position(3, 2)
    assert bench.step.read_to() == {HOME: 3}


async def test_rows_have_their_place_and_exact_values(bench: Bench) -> None:
    await bench.write(*btc(7))
    await bench.read_on()
    await bench.step.flush()
    (row,) = stored(bench.lake)
    assert (row["log_epoch"], row["log_topic"], row["log_partition"]) == (EPOCH, TRADES.log, 0)
    assert row["platform_sequence"] == 0
    assert str(row["price"]) == "61837.6300000000"
    assert row["vendor_data"] == '{"M":"true"}'


async def test_a_new_process_starts_at_the_lakes_vector(bench: Bench) -> None:
    await bench.write(*btc(1, 2, 3, 4, 5))
    await bench.read_on()
    await bench.step.flush()
    await bench.write(*btc(6, 7))
    await bench.add(5)  # read, not committed: the process dies here
    bench.restart()
    assert await bench.read_on() == {HOME: 5}
    await bench.step.flush()
    assert ids_stored(bench.lake) == btc(1, 2, 3, 4, 5, 6, 7)


async def test_groups_written_again_are_dropped_and_acked(bench: Bench) -> None:
    await bench.write(*btc(1, 2, 3, 4, 5, 6))
    await bench.read_on()
    await bench.step.flush()
    # A restarted validate step writes from its checkpoint on, cut differently.
    end = bench.log.end(*HOME)
    await bench.write(*btc(4, 5, 6), first=3, max_records=2)
    await bench.add(end)
    assert bench.tokens.acked == [1, 1], "nothing in it is new: the lake has it"
    end = bench.log.end(*HOME)
    await bench.write(*btc(5, 6, 7, 8), first=4, max_records=3)
    await bench.add(end)
    await bench.step.flush()
    assert ids_stored(bench.lake) == btc(*range(1, 9))
    assert bench.tokens.acked == [1, 1, 1]


async def test_groups_written_again_are_known_after_a_restart_too(bench: Bench) -> None:
    await bench.write(*btc(1, 2, 3))
    await bench.read_on()
    await bench.step.flush()
    await bench.write(*btc(1, 2, 3, 4), first=0)
    bench.restart()
    await bench.read_on()
    await bench.step.flush()
    assert ids_stored(bench.lake) == btc(1, 2, 3, 4)


async def test_a_hole_stops_the_sink(bench: Bench) -> None:
    await bench.write(*btc(1, 2))
    await bench.read_on()
    await bench.write(*btc(9), first=5)
    with pytest.raises(CoverHoleError):
        await bench.add(2)
    assert bench.tokens.acked == [1, 0]


async def test_gaps_need_not_abut_and_have_their_own_table(bench: Bench) -> None:
    for first, last in ((3, 4), (9, 9)):
        row = build(
            "gaps",
            1,
            {
                "message_id": f"gap-{first}",
                "symbol": "BTCUSDT",
                "exchange": "BINANCE",
                "data_type": "trades",
                "event": "opened",
                "first_id": [first],
                "last_id": [last],
                "detected_at": [bench.clock.now_us()],
                "how": "jump",
                "log_offset": [last + 1],
                "ordinal": [0],
            },
        )
        values = bench.codecs.of(TRADES.gaps).encode(row)
        for group in in_groups(
            Records(np.array([last + 1]), [b"BTCUSDT"], list(values)),
            topic=TRADES.gaps,
            partition=0,
            epoch=EPOCH,
            first=first,
            last=last + 1,
            cut=Cut(10, 1_000_000),
        ):
            await bench.log.send_batch(group)
    await bench.read_on(TP(TRADES.gaps, 0))
    await bench.step.flush()
    rows = stored(bench.lake, "gaps")
    assert [(r["expected"], r["received"], r["size"]) for r in rows] == [(3, 5, 2), (9, 10, 1)]
    assert [r["platform_sequence"] for r in rows] == [5, 10]


async def test_tables_and_partitions_are_committed_apart(bench: Bench) -> None:
    other, quotes = TP(TRADES.validated, 1), TP(QUOTES.validated, 0)
    await bench.write(*btc(1, 2))
    await bench.write(("ETHUSDT", 1), partition=1)
    await bench.write(*btc(5, 9), topic=QUOTES)
    for tp in (HOME, other, quotes):
        await bench.read_on(tp)
    await bench.step.flush()
    assert ids_stored(bench.lake) == [*btc(1, 2), ("ETHUSDT", 1)]
    assert ids_stored(bench.lake, "quotes") == btc(5, 9)
    counts = bench.step.counts()
    assert {name: (c.rows, c.commits) for name, c in counts.items()} == {
        "trades": (3, 1),
        "quotes": (2, 1),
        "gaps": (0, 0),
    }
    bench.restart()
    tps = frozenset({HOME, other, quotes, TP(TRADES.validated, 2)})
    assert await bench.step.positions(tps) == {HOME: 2, other: 1, quotes: 2}


async def test_a_log_made_anew_begins_at_its_own_position(bench: Bench) -> None:
    await bench.write(*btc(1, 2, 3))
    await bench.read_on()
    await bench.step.flush()
    bench.log, bench.epoch, bench.written = MemoryLog(), OTHER_EPOCH, {}
    bench.restart()
    await bench.write(*btc(4, 5))
    assert await bench.read_on() == {}
    await bench.step.flush()
    assert sorted(ids_stored(bench.lake)) == btc(1, 2, 3, 4, 5)
    vector = bench.lake.writers["trades"].vector()
    assert vector.get(place()) == Position(3, 2)
    assert vector.get(place(epoch=OTHER_EPOCH)) == Position(2, 1)


async def test_what_a_zombie_of_the_old_log_still_writes_is_stored_under_its_own_epoch(
    bench: Bench,
) -> None:
    await bench.write(*btc(1, 2, 3))
    await bench.read_on()
    await bench.write(*btc(7), first=0, epoch=OTHER_EPOCH)
    await bench.write(*btc(4), first=3)
    await bench.add(3)
    await bench.step.flush()
    rows = [
        (row["log_epoch"], row["platform_sequence"], row["trade_id"]) for row in stored(bench.lake)
    ]
    assert sorted(rows) == sorted(
        [(OTHER_EPOCH, 0, "7"), *((EPOCH, i, str(i + 1)) for i in range(4))]
    )
    assert bench.tokens.acked == [1, 1]


async def test_a_batch_that_is_due_is_committed_without_asking(bench: Bench) -> None:
    bench.step.start()
    await bench.write(*btc(*range(1, 13)))
    await bench.read_on()
    await eventually(lambda: bench.step.ceiling(HOME) == 12)
    assert len(ids_stored(bench.lake)) == 12
    await bench.write(*btc(13))
    await bench.add(12)
    await turns()
    assert bench.step.ceiling(HOME) == 12, "one row waits for its interval"
    await bench.step.stop()
    assert bench.step.ceiling(HOME) == 13, "and is stored at the stop"
    assert len(ids_stored(bench.lake)) == 13


async def test_a_full_buffer_holds_reading_until_a_commit_has_landed(bench: Bench) -> None:
    bench.policy = SinkPolicy(batch_rows=10_000, interval_s=1e9, min_interval_s=0.0, max_bytes=1)
    bench.restart()
    await bench.write(*btc(1, 2))
    adding = asyncio.ensure_future(bench.read_on())
    await eventually(lambda: bench.step.pending_rows == 2)
    await turns()
    assert not adding.done()
    assert bench.tokens.acked == [1], "a rebalance need not wait for the lake"
    bench.step.start()
    await adding
    await bench.step.stop()
    assert ids_stored(bench.lake) == btc(1, 2)


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
