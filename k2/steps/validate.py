"""Validate: a log of record to its validated topic, dead letters and gaps.

Guarantee: outputs first, then state and position as one value, then the committed offset, which
never passes the checkpoint (`ceiling`); an event is acknowledged once its outputs are handed on.
After a crash the step begins at its checkpoint and writes the same groups again, which readers
recognise by their covers. A batch the log refuses stops the worker.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import structlog
from faust.types import TP

from k2 import metrics
from k2.clock import Clock
from k2.errors import LogError
from k2.faultpoints import Point, reached
from k2.log import bind_correlation
from k2.pipeline.checkpoint import Entry
from k2.pipeline.validate import Outcome, Validator
from k2.quality import Quality
from k2.steps.publish import BatchProducer
from k2.topics import MarketTopic, parse
from k2.tracing import TRACING, contexts_of, header
from k2.transport.batch import LogBatch, OutBatch
from k2.transport.single import failure

log = structlog.get_logger(__name__)
T = TypeVar("T")

#: Batches of outputs on their way per partition before the next input is taken.
_IN_FLIGHT = 32
#: Larger batches are judged in a thread: Arrow and the codec hold no interpreter lock, so the loop
#: unpacks and sends meanwhile.
_INLINE_ROWS = 500


class CheckpointTable(Protocol):
    """Where checkpoints live; the Faust table behind it has a changelog."""

    def load(self, tp: TP) -> Mapping[bytes, bytes]:
        """Every entry of a partition."""

    def store(self, tp: TP, entries: Sequence[tuple[bytes, bytes]]) -> Awaitable[None]:
        """Write the entries; done once the changelog has acknowledged them."""


class ValidatorFactory(Protocol):
    """Makes the state of a partition, and knows what of it the lake has."""

    def make(self, topic: MarketTopic, partition: int) -> Validator:
        """An empty validator."""

    def may_block(self, validator: Validator) -> bool:
        """True when judging may ask the lake for ids."""

    def stored_through(self, tp: TP) -> int:
        """Highest platform_sequence of the partition in the lake, -1 for none."""


class Statements(Protocol):
    """Where reference data is kept for every worker (`k2.steps.reference`)."""

    def put(self, outputs: Sequence[OutBatch]) -> Awaitable[asyncio.Future[int]]:
        """Write what was validated; the future is done once the log has it."""


@dataclass(slots=True)
class ValidateCounts:
    """What this worker validated."""

    records: int = 0
    duplicates: int = 0
    late: int = 0
    dead_letters: int = 0
    gaps_opened: int = 0
    missing_ids: int = 0
    shed: int = 0
    checkpoints: int = 0


@dataclass(slots=True)
class _Lane:
    """One partition: its state, and the outputs not yet settled.

    `broken`: the state may be ahead of the outputs, which no checkpoint may be.
    """

    validator: Validator
    outputs: deque[asyncio.Future[int]] = field(default_factory=deque)
    checkpoint_s: float = 0.0
    broken: bool = False
    judging: asyncio.Lock = field(default_factory=asyncio.Lock)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def dirty(self) -> bool:
        """True when the stored checkpoint is behind."""
        return self.validator.next_offset != self.validator.checkpointed_offset

    def expect(self, output: asyncio.Future[int]) -> None:
        """Outputs on their way; of several the log refuses, only the first is asked why."""
        output.add_done_callback(failure)
        self.outputs.append(output)

    def settle(self) -> None:
        """Let go of acknowledged outputs, oldest first; raises what the log refused.

        A refused one stays, so that whoever comes to a checkpoint before the worker has ended
        fails as well instead of passing it.
        """
        while self.outputs and self.outputs[0].done():
            self.outputs[0].result()
            self.outputs.popleft()


class ValidateStep:
    """The lanes of the partitions this worker owns."""

    def __init__(
        self,
        factory: ValidatorFactory,
        table: CheckpointTable,
        producer: BatchProducer,
        level: Callable[[], int],
        clock: Clock,
        *,
        checkpoint_s: float,
        quality: Quality | None = None,
        statements: Statements | None = None,
    ) -> None:
        self._statements = statements
        self.counts = ValidateCounts()
        self._quality = quality
        self._factory = factory
        self._table = table
        self._producer = producer
        self._level = level
        self._clock = clock
        self._checkpoint_s = checkpoint_s
        self._lanes: dict[TP, _Lane] = {}

    async def positions(self, tps: frozenset[TP]) -> dict[TP, int]:
        """Restore the lanes from their checkpoints; where each has to read on."""
        positions: dict[TP, int] = {}
        reached(Point.ON_ASSIGN)
        for tp in tps:
            validator = self._factory.make(parse(tp.topic)[0], tp.partition)
            validator.restore(self._table.load(tp))
            self._lanes[tp] = _Lane(validator, checkpoint_s=self._clock.monotonic_s())
            if validator.next_offset:
                positions[tp] = validator.next_offset
        return positions

    def keep(self, tps: Collection[TP]) -> None:
        """Forget every partition but these: others have them now."""
        left = {tp.topic for tp in self._lanes.keys() - set(tps)}
        self._lanes = {tp: lane for tp, lane in self._lanes.items() if tp in tps}
        for topic in left:
            self._show_symbols(topic)

    def ceiling(self, tp: TP) -> int | None:
        """The committed offset must not pass the checkpoint."""
        lane = self._lanes.get(tp)
        return None if lane is None else lane.validator.checkpointed_offset

    async def process(self, batch: LogBatch, token: Any) -> None:
        """Validate one batch and hand on its outputs; then `token` is acked."""
        tp = TP(batch.topic, batch.partition)
        lane = self._lanes.get(tp)
        if lane is None:
            # It left while the batch was on its way; who has it now starts at the checkpoint.
            token.ack()
            return
        with bind_correlation(batch=_named(batch)):
            await _to_its_end(self._take(lane, batch))
        reached(Point.BEFORE_ACK)
        token.ack()
        while len(lane.outputs) > _IN_FLIGHT:
            # It stays in place: a checkpoint written meanwhile must wait for it too. A plain await
            # would cancel it with us.
            await asyncio.wait([lane.outputs[0]])
            lane.settle()
        if self._due(lane):
            await self._checkpoint(tp, lane)

    async def _take(self, lane: _Lane, batch: LogBatch) -> None:
        async with lane.judging:
            _check_whole(TP(batch.topic, batch.partition), lane)
            lane.broken = True
            with TRACING.span(
                "k2.validate", contexts_of(batch), topic=batch.topic, records=len(batch)
            ) as context:
                outcome = await self._judge(lane, batch)
                reached(Point.AFTER_DECODE)
                for out in outcome.outputs:
                    out.headers += header(context)
                    lane.expect(self._producer.send_batch(out))
                await self._state(lane, outcome)
            lane.broken = False
        self._count(batch, outcome)

    async def _state(self, lane: _Lane, outcome: Outcome) -> None:
        """Tell every worker what was said of instruments: one more output of the batch."""
        if self._statements is None or lane.validator.topic.data_type != "reference_data":
            return
        validated = lane.validator.topic.validated
        outputs = [out for out in outcome.outputs if out.topic == validated]
        lane.expect(await self._statements.put(outputs))

    async def _judge(self, lane: _Lane, batch: LogBatch) -> Outcome:
        began_s = self._clock.monotonic_s()
        level = self._level()
        validator = lane.validator
        may_block = self._factory.may_block(validator) or validator.may_ask(batch)
        if len(batch) > _INLINE_ROWS or may_block:
            outcome = await asyncio.to_thread(lane.validator.apply, batch, level)
        else:
            outcome = lane.validator.apply(batch, level)
        metrics.VALIDATE_SECONDS.labels(batch.topic).observe(self._clock.monotonic_s() - began_s)
        return outcome

    async def checkpoint_due(self) -> None:
        """Write the checkpoints that are due; call it now and then, for idle partitions."""
        for tp, lane in list(self._lanes.items()):
            if self._due(lane):
                await self._checkpoint(tp, lane)

    async def checkpoint_all(self) -> None:
        """Write every checkpoint that is behind its lane."""
        for tp, lane in list(self._lanes.items()):
            if lane.dirty or lane.judging.locked():
                await self._checkpoint(tp, lane)

    def next_offsets(self) -> dict[TP, int]:
        """The next offset of each log of record to validate."""
        return {tp: lane.validator.next_offset for tp, lane in self._lanes.items()}

    @property
    def in_flight(self) -> int:
        """Batches being judged, and output batches the log has not acknowledged."""
        return sum(
            lane.broken + sum(not future.done() for future in lane.outputs)
            for lane in self._lanes.values()
        )

    def _due(self, lane: _Lane) -> bool:
        return lane.dirty and self._clock.monotonic_s() - lane.checkpoint_s >= self._checkpoint_s

    async def _checkpoint(self, tp: TP, lane: _Lane) -> None:
        async with lane.writing:
            frozen = await _to_its_end(self._freeze(tp, lane))
            if frozen is None:
                return
            entries, offset, outputs = frozen
            if outputs:
                await asyncio.wait(outputs)
            lane.settle()
            reached(Point.AFTER_PRODUCE)
            await self._table.store(tp, entries)
            reached(Point.AFTER_TABLE_UPDATE)
            lane.validator.checkpointed(offset)
        self.counts.checkpoints += 1
        metrics.CHECKPOINTS.labels(tp.topic).inc()
        metrics.CHECKPOINT_BYTES.labels(tp.topic).set(sum(len(value) for _, value in entries))
        self._show_symbols(tp.topic)

    async def _freeze(
        self, tp: TP, lane: _Lane
    ) -> tuple[list[Entry], int, tuple[asyncio.Future[int], ...]] | None:
        """State and position taken in one step, and the outputs they rest on; None: nothing new."""
        async with lane.judging:
            _check_whole(tp, lane)
            if not lane.dirty:
                return None
            stored_through = self._factory.stored_through(tp)
            # Thousands of symbols take a while to encode; the lock keeps the state as it is.
            entries, offset = await asyncio.to_thread(_frozen, lane.validator, stored_through)
            lane.checkpoint_s = self._clock.monotonic_s()
            return entries, offset, tuple(lane.outputs)

    def _show_symbols(self, topic: str) -> None:
        lanes = [lane for tp, lane in self._lanes.items() if tp.topic == topic]
        tracked = sum(len(lane.validator.continuity) for lane in lanes)
        metrics.TRACKED_SYMBOLS.labels(topic).set(tracked)
        if not lanes:
            metrics.CHECKPOINT_BYTES.labels(topic).set(0)

    def _count(self, batch: LogBatch, outcome: Outcome) -> None:
        topic, found, counts = parse(batch.topic)[0], outcome.counts, self.counts
        feed = (topic.exchange.upper(), topic.asset_class, topic.data_type)
        counts.records += outcome.records
        counts.duplicates += found.duplicates
        counts.late += found.late
        counts.dead_letters += sum(outcome.dead_letters.values())
        counts.gaps_opened += found.small_gaps + found.large_gaps
        counts.missing_ids += outcome.missing_ids
        if self._quality is not None:
            refused = sum(outcome.dead_letters.values())
            self._quality.judged(
                feed[0], topic.data_type, outcome.records, outcome.missing_ids, refused
            )
        metrics.CONSUMED.labels(batch.topic, "validate").inc(outcome.records)
        metrics.DUPLICATES.labels(*feed).inc(found.duplicates)
        metrics.OUT_OF_ORDER.labels(*feed).inc(found.late)
        metrics.RESETS.labels(*feed).inc(found.resets)
        metrics.GAPS.labels(*feed, "small").inc(found.small_gaps)
        metrics.GAPS.labels(*feed, "large").inc(found.large_gaps)
        metrics.MISSING_IDS.labels(*feed).inc(outcome.missing_ids)
        metrics.GAPS_CLOSED.labels(*feed).inc(sum(e.event == "closed" for e in outcome.gaps))
        for reason, count in outcome.dead_letters.items():
            metrics.DEAD_LETTERS.labels(*feed, reason).inc(count)
            log.warning(
                "dead_letters",
                topic=batch.topic,
                reason=reason,
                count=count,
            )
        for condition, count in outcome.flagged.items():
            metrics.QUOTE_FLAGS.labels(condition).inc(count)
        for shed in outcome.shed:
            counts.shed += shed.count
            metrics.MESSAGES_SHED.labels(str(shed.tier), "degradation").inc(shed.count)


def _check_whole(tp: TP, lane: _Lane) -> None:
    if lane.broken:
        raise LogError(
            f"{tp.topic}[{tp.partition}]: the outputs of a batch were not all handed on: none may "
            "follow them, and its state must not be stored; restart the worker, which goes on from "
            "the checkpoint before it",
            topic=tp.topic,
            partition=tp.partition,
        )


def _named(batch: LogBatch) -> str:
    """What its lines are found by: the place of the batch in the log."""
    return f"{batch.topic}[{batch.partition}]@{batch.first_offset}"


def _frozen(validator: Validator, stored_through: int) -> tuple[list[Entry], int]:
    validator.trim(stored_through)
    return validator.checkpoint()


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """`work` goes on when the caller is cancelled: a thread that changes state can't be called back
    and must keep its lock."""
    return await asyncio.shield(asyncio.ensure_future(work))
