"""Validate: outputs, then the checkpoint, then the acks, whatever waits and whatever fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from faust.types import TP

from k2.codecs import Codecs
from k2.degradation.levels import Level
from k2.degradation.tiers import Tiers
from k2.errors import LogError, RetentionGapError
from k2.pipeline.cover import CoverReader
from k2.pipeline.validate import LaneCodecs, Outcome, Validator
from k2.settings import Settings
from k2.steps.validate import ValidateStep
from k2.testing.clock import ManualClock, turns
from k2.testing.log import MemoryLog, MemoryTable
from k2.topics import MarketTopic
from tests.steps.parts import EPOCH, QUOTES, TRADES, Record, Tokens, dead_letters, out_of

HOME = TP(TRADES.log, 0)
CHECKPOINT_S = 5.0
TIERS = Tiers(["BTC"], ["ETH"], ["USDT"])


@dataclass
class Factory:
    """`ValidatorFactory` without a lake."""

    settings: Settings
    codecs: Codecs
    clock: ManualClock
    group_records: int = 4_096
    blocking: bool = False
    stored: int = -1

    def make(self, topic: MarketTopic, partition: int) -> Validator:
        return Validator(
            topic,
            partition,
            EPOCH,
            codecs=LaneCodecs(
                self.codecs.of(topic.log), self.codecs.of(topic.gaps), self.codecs.of(topic.dlq)
            ),
            options=self.settings.validate_.model_copy(
                update={"group_records": self.group_records}
            ),
            clock=self.clock,
            tiers=TIERS,
        )

    def may_block(self, validator: Validator) -> bool:
        return self.blocking

    def stored_through(self, tp: TP) -> int:
        return self.stored


@dataclass
class Bench:
    """A validate step between a log in memory and a table in memory."""

    step: ValidateStep
    log: MemoryLog
    table: MemoryTable
    codecs: Codecs
    factory: Factory
    clock: ManualClock
    level: Level = Level.NORMAL
    tokens: Tokens = field(default_factory=Tokens)

    def restart(self) -> None:
        """A new process over the same log and table."""
        self.step = ValidateStep(
            self.factory,
            self.table,
            self.log,
            lambda: self.level,
            self.clock,
            checkpoint_s=CHECKPOINT_S,
        )

    async def write(self, *records: Record, topic: MarketTopic = TRADES) -> None:
        await self.log.send_batch(out_of(self.codecs, records, topic=topic))

    async def process(self, start: int = 0, topic: MarketTopic = TRADES) -> None:
        """What the log of record has from `start` on, as one event."""
        batch = self.log.batch(topic.log, 0, start)
        await self.step.process(batch, self.tokens.new())

    def validated(self, topic: MarketTopic = TRADES) -> list[int]:
        """Offsets of the log of record that a reader of the validated topic applies."""
        reader = CoverReader(topic.validated, 0)
        return [
            offset
            for batch in self.log.batches(topic.validated)
            for group in reader.read(batch)
            for offset in group.sequences.tolist()
        ]

    @property
    def checkpoint(self) -> int | None:
        """The position of the stored checkpoint: where a new process would read on."""
        validator = self.factory.make(TRADES, 0)
        validator.restore(self.table.load(HOME))
        return validator.next_offset or None


@pytest.fixture
async def bench(settings: Settings, codecs: Codecs, clock: ManualClock, log: MemoryLog) -> Bench:
    factory = Factory(settings, codecs, clock)
    made = Bench(None, log, MemoryTable(), codecs, factory, clock)  # type: ignore[arg-type]
    made.restart()
    assert await made.step.positions(frozenset({HOME})) == {}
    return made


def btc(*ids: int) -> list[Record]:
    return [("BTCUSDT", ident) for ident in ids]


async def test_outputs_then_checkpoint_then_what_may_be_committed(bench: Bench) -> None:
    await bench.write(*btc(1, 2, 3))
    bench.log.hold()
    await bench.process()
    assert bench.validated() == [0, 1, 2]
    bench.table.hold()
    storing = asyncio.ensure_future(bench.step.checkpoint_all())
    await turns()
    assert (bench.checkpoint, bench.step.ceiling(HOME)) == (None, 0), "before the outputs are there"
    assert bench.tokens.acked == [1], "a rebalance waits for what is judged, not for what is stored"
    assert bench.step.in_flight == 1
    bench.log.release()
    await turns()
    assert (bench.table.stores, bench.step.ceiling(HOME)) == (0, 0), "before it is stored"
    bench.table.release()
    await storing
    assert bench.checkpoint == 3
    assert bench.step.ceiling(HOME) == 3
    assert bench.step.in_flight == 0


async def test_a_batch_being_judged_is_in_flight(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a thread it may take a while: nobody may take the log for read through meanwhile."""
    judge, seen = ValidateStep._judge, []

    async def watched(step: ValidateStep, *args: Any) -> Any:
        outcome = await judge(step, *args)
        seen.append(step.in_flight)
        return outcome

    monkeypatch.setattr(ValidateStep, "_judge", watched)
    await bench.write(*btc(1))
    await bench.process()
    assert seen == [1]


async def test_a_checkpoint_is_due_after_its_interval_and_only_when_something_moved(
    bench: Bench,
) -> None:
    await bench.write(*btc(1))
    await bench.process()
    await bench.step.checkpoint_due()
    assert bench.table.stores == 0
    await bench.clock.advance(CHECKPOINT_S)
    await bench.step.checkpoint_due()
    assert (bench.table.stores, bench.step.ceiling(HOME)) == (1, 1)
    await bench.clock.advance(CHECKPOINT_S)
    await bench.step.checkpoint_due()
    await bench.step.checkpoint_all()
    assert bench.table.stores == 1
    await bench.write(*btc(2))
    await bench.process(start=1)
    assert (bench.table.stores, bench.step.ceiling(HOME)) == (2, 2), "process looks at the time too"
    assert bench.step.counts.checkpoints == 2


async def test_a_checkpoint_written_while_process_waits_for_an_output_waits_for_it_too(
    bench: Bench,
) -> None:
    bench.factory.group_records = 1
    await bench.step.positions(frozenset({HOME}))
    await bench.write(*btc(*range(1, 51)))
    bench.log.hold()
    processing = asyncio.ensure_future(bench.process())
    await turns()
    assert not processing.done(), "fifty outputs on their way: no more input is taken"
    storing = asyncio.ensure_future(bench.step.checkpoint_all())
    await turns()
    # All but the oldest, which process waits for, are acknowledged.
    oldest = bench.log._held.popleft()
    bench.log.release()
    await turns()
    assert bench.table.stores == 0
    assert bench.checkpoint is None
    oldest[0].set_result(oldest[1])
    await asyncio.gather(processing, storing)
    assert bench.checkpoint == 50


async def test_what_is_processed_while_a_checkpoint_is_stored_may_not_be_committed_with_it(
    bench: Bench,
) -> None:
    await bench.write(*btc(1, 2))
    await bench.process()
    bench.table.hold()
    storing = asyncio.ensure_future(bench.step.checkpoint_all())
    await turns()
    await bench.write(*btc(3))
    await bench.process(start=2)
    assert bench.step.next_offsets() == {HOME: 3}
    bench.table.release()
    await storing
    assert (bench.checkpoint, bench.step.ceiling(HOME)) == (2, 2)
    await bench.step.checkpoint_all()
    assert (bench.checkpoint, bench.step.ceiling(HOME)) == (3, 3)


async def test_a_restarted_step_goes_on_at_its_checkpoint(bench: Bench) -> None:
    await bench.write(*btc(1, 2, 3))
    await bench.process()
    await bench.step.checkpoint_all()
    await bench.write(*btc(4, 5, 2))
    await bench.process(start=3)  # written, not checkpointed: the process dies here
    bench.restart()
    assert await bench.step.positions(frozenset({HOME})) == {HOME: 3}
    assert bench.step.ceiling(HOME) == 3
    await bench.write(*btc(6))
    await bench.process(start=3)
    await bench.step.checkpoint_all()
    assert bench.validated() == [0, 1, 2, 3, 4, 6], "emitted twice, applied once; 2 is known"
    assert bench.step.counts.duplicates == 1
    assert bench.checkpoint == 7


async def test_without_a_checkpoint_everything_is_read_again(bench: Bench) -> None:
    await bench.write(*btc(1, 2, 3))
    await bench.process()
    bench.restart()
    assert await bench.step.positions(frozenset({HOME})) == {}
    assert bench.step.ceiling(HOME) == 0
    await bench.process()
    assert bench.validated() == [0, 1, 2]


async def checkpoint_due(bench: Bench) -> None:
    await bench.clock.advance(CHECKPOINT_S)
    await bench.step.checkpoint_due()


async def checkpoint_all(bench: Bench) -> None:
    await bench.step.checkpoint_all()


async def process_more(bench: Bench) -> None:
    await bench.clock.advance(CHECKPOINT_S)
    await bench.write(*btc(4))
    await bench.process(start=3)


WAYS = [checkpoint_due, checkpoint_all, process_more]


@pytest.mark.parametrize("way", WAYS)
async def test_no_checkpoint_passes_an_output_the_log_refused(
    bench: Bench, way: Callable[[Bench], asyncio.Future[None]]
) -> None:
    await bench.write(*btc(1, 2, 3))
    bench.log.refuse(LogError("the disk is full"))
    await bench.process()
    bench.log.refuse(None)
    with pytest.raises(LogError, match="disk is full"):
        await way(bench)
    # The worker ends now; whoever still comes to a checkpoint before it has must fail as well.
    for other in WAYS:
        with pytest.raises(LogError, match="disk is full"):
            await other(bench)
    assert (bench.table.stores, bench.checkpoint) == (0, None)
    assert bench.step.ceiling(HOME) == 0


async def test_an_output_refused_behind_others_stays_known(bench: Bench) -> None:
    bench.factory.group_records = 1
    await bench.step.positions(frozenset({HOME}))
    await bench.write(*btc(*range(1, 41)))
    bench.log.hold()
    processing = asyncio.ensure_future(bench.process())
    await turns()
    bench.log.release(1)
    bench.log._held[0][0].set_exception(LogError("the disk is full"))
    bench.log._held.popleft()
    bench.log.release()
    with pytest.raises(LogError, match="disk is full"):
        await processing
    with pytest.raises(LogError, match="disk is full"):
        await bench.step.checkpoint_all()
    assert bench.table.stores == 0


async def test_a_checkpoint_that_cannot_be_stored_lets_nothing_be_committed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise LogError("the changelog is away")

    await bench.write(*btc(1))
    await bench.process()
    monkeypatch.setattr(bench.table, "store", refuse)
    with pytest.raises(LogError, match="changelog is away"):
        await bench.step.checkpoint_all()
    assert bench.step.ceiling(HOME) == 0


async def test_a_checkpoint_given_up_halfway_gives_up_no_output(bench: Bench) -> None:
    await bench.write(*btc(1))
    bench.log.hold()
    await bench.process()
    storing = asyncio.ensure_future(bench.step.checkpoint_all())
    await turns()
    storing.cancel()
    await asyncio.gather(storing, return_exceptions=True)
    again = asyncio.ensure_future(bench.step.checkpoint_all())
    await turns()
    assert (bench.table.stores, bench.step.in_flight) == (0, 1)
    bench.log.release()
    await again
    assert bench.checkpoint == 1


async def test_two_checkpoints_at_once_are_stored_one_after_the_other(bench: Bench) -> None:
    await bench.write(*btc(1))
    await bench.process()
    bench.table.hold()
    first = asyncio.ensure_future(bench.step.checkpoint_all())
    await turns()
    await bench.write(*btc(2))
    await bench.process(start=1)
    second = asyncio.ensure_future(bench.step.checkpoint_all())
    await turns()
    bench.table.release()
    await asyncio.gather(first, second)
    assert (bench.checkpoint, bench.table.stores) == (2, 2)


async def test_a_checkpoint_is_of_the_state_at_its_moment_and_off_the_loop(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.write(*btc(1, 2))
    await bench.process()
    threads = []
    freeze = Validator.checkpoint

    def noted(validator: Validator) -> object:
        threads.append(threading.current_thread())
        return freeze(validator)

    monkeypatch.setattr(Validator, "checkpoint", noted)
    await bench.step.checkpoint_all()
    assert threads
    assert threading.main_thread() not in threads
    assert bench.checkpoint == 2


async def test_a_batch_that_was_not_wholly_handed_on_is_in_no_checkpoint(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_batch: object) -> None:
        raise LogError("larger than a batch may be")

    await bench.write(*btc(1))
    await bench.process()
    await bench.step.checkpoint_all()
    await bench.write(*btc(2))
    with monkeypatch.context() as patch:
        patch.setattr(bench.log, "send_batch", refuse)
        with pytest.raises(LogError, match="larger"):
            await bench.process(start=1)
    for way in (bench.step.checkpoint_all, bench.step.checkpoint_due):
        await bench.clock.advance(CHECKPOINT_S)
        with pytest.raises(LogError, match="not all handed on"):
            await way()
    assert (bench.checkpoint, bench.tokens.acked) == (1, [1, 0])


async def test_a_batch_whose_agent_is_cancelled_is_judged_to_its_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.factory.blocking = True
    may_go = threading.Event()
    judge = Validator.apply

    def slow(*arguments: Any) -> Outcome:
        assert may_go.wait(10)
        return judge(*arguments)

    monkeypatch.setattr(Validator, "apply", slow)
    await bench.write(*btc(1, 2))
    processing = asyncio.ensure_future(bench.process())
    await turns()
    processing.cancel()
    await asyncio.gather(processing, return_exceptions=True)
    storing = asyncio.ensure_future(bench.step.checkpoint_all())
    await turns()
    assert bench.table.stores == 0
    may_go.set()
    await storing
    assert bench.validated() == [0, 1]
    assert bench.checkpoint == 2


@pytest.mark.parametrize("blocking", [False, True])
async def test_large_batches_and_lanes_that_ask_the_lake_are_judged_in_a_thread(
    bench: Bench, blocking: bool
) -> None:
    bench.factory.blocking = blocking
    count = 20 if blocking else 2_000
    await bench.write(*btc(*range(1, count + 1)))
    await bench.process()
    await bench.write(*btc(*range(1, count + 1)))
    await bench.process(start=count)
    await bench.step.checkpoint_all()
    assert bench.validated() == list(range(count))
    assert bench.step.counts.duplicates == count


async def test_bad_records_and_gaps_go_to_their_topics_and_are_counted(bench: Bench) -> None:
    await bench.write(*btc(1, 2, 5))
    batch = out_of(bench.codecs, btc(6))
    batch.values[0] = b"no record"
    await bench.log.send_batch(batch)
    await bench.write(*btc(4))
    await bench.process()
    await bench.step.checkpoint_all()
    counts = bench.step.counts
    assert (counts.records, counts.dead_letters, counts.late) == (5, 1, 1)
    assert (counts.gaps_opened, counts.missing_ids) == (1, 2)
    assert bench.validated() == [0, 1, 2, 4]
    (letter,) = dead_letters(bench.codecs, bench.log.values(TRADES.dlq))
    assert (letter["reason"], letter["offset"], letter["value"]) == ("BAD_MAGIC", 3, b"no record")
    events = bench.codecs.of(TRADES.gaps).decode(bench.log.values(TRADES.gaps)).batch.to_pylist()
    assert [(e["event"], e["first_id"], e["last_id"]) for e in events] == [
        ("opened", 3, 4),
        ("closed", 4, 4),
    ]


async def test_partitions_and_feeds_are_apart(bench: Bench) -> None:
    homes = frozenset({HOME, TP(QUOTES.log, 0)})
    await bench.step.positions(homes)
    await bench.write(*btc(1, 2))
    await bench.write(*btc(2, 9, 30), topic=QUOTES)
    await bench.process()
    await bench.process(topic=QUOTES)
    await bench.step.checkpoint_all()
    assert bench.step.next_offsets() == {HOME: 2, TP(QUOTES.log, 0): 3}
    assert bench.validated() == [0, 1]
    assert bench.validated(QUOTES) == [0, 1, 2]
    assert bench.step.counts.missing_ids == 0, "update ids skip"
    assert bench.step.ceiling(TP(TRADES.log, 7)) is None, "not ours"


async def test_records_that_vanished_unread_stop_the_step(bench: Bench) -> None:
    await bench.write(*btc(1))
    await bench.process()
    await bench.write(*btc(2))
    await bench.write(*btc(3))
    with pytest.raises(RetentionGapError):
        await bench.process(start=2)
    assert bench.step.next_offsets() == {HOME: 1}


async def test_what_a_level_puts_off_is_counted_and_no_gap(bench: Bench) -> None:
    bench.level = Level.GRACEFUL
    records = [(s, i) for i in range(1, 6) for s in ("BTCUSDT", "ETHUSDT", "XYZUSDT")]
    await bench.write(*records)
    await bench.process()
    assert bench.step.counts.shed == 5
    assert bench.step.counts.missing_ids == 0
    assert bench.validated() == [o for o, (s, _) in enumerate(records) if s != "XYZUSDT"]
    bench.level = Level.NORMAL
    await bench.write(("XYZUSDT", 6))
    await bench.process(start=15)
    assert bench.step.counts.missing_ids == 0


async def test_a_partition_that_left_is_forgotten(bench: Bench) -> None:
    other = TP(TRADES.log, 1)
    await bench.step.positions(frozenset({HOME, other}))
    await bench.write(*btc(1))
    await bench.process()
    bench.step.keep(frozenset({other}))
    assert bench.step.next_offsets() == {other: 0}
    assert bench.step.ceiling(HOME) is None
    await bench.step.checkpoint_all()
    assert bench.table.stores == 0, "its new owner writes its checkpoints"
    await bench.process()
    assert bench.tokens.acked == [1, 1], "what was on its way is its new owner's too"
    assert bench.validated() == [0]
