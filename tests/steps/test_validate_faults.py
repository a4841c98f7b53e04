"""Validate: no checkpoint passes what the log did not take, whatever waits and whatever fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from faust.types import TP

from k2.degradation.levels import Level
from k2.errors import LogError, RetentionGapError
from k2.pipeline.validate import Outcome, Validator
from k2.testing.clock import turns
from tests.steps.parts import QUOTES, TRADES, dead_letters, out_of
from tests.steps.validate_bench import (
    CHECKPOINT_S,
    HOME,
    Bench,
    bench,
    btc,
)

__all__ = ["bench"]


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
