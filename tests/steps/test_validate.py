"""Validate: outputs, then the checkpoint, then the acks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from k2.steps.validate import ValidateStep
from k2.testing.clock import turns
from k2.transport.batch import OutBatch
from tests.steps.validate_bench import (
    CHECKPOINT_S,
    HOME,
    Bench,
    bench,
    btc,
)

__all__ = ["bench"]


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


async def test_lines_of_a_batch_are_found_by_its_place(bench: Bench) -> None:
    await bench.log.send_batch(OutBatch(HOME.topic, 0, [b"no Avro"], [b"BTCUSDT"]))
    with capture_logs(processors=[merge_contextvars]) as said:
        await bench.process()
    (line,) = [line for line in said if line["event"] == "dead_letters"]
    assert line["batch"] == f"{HOME.topic}[0]@0"
