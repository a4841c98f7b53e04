"""The consumer side both drivers share: one message per record batch, exact acks, safe seeks.

Built on the consumer of Faust 0.15.3. What differs from Faust's own bookkeeping, and why:

- acks are ranges (`acks.py`); Faust's offset lists are wrong for batches;
- what was fetched but may not be delivered now (paused, buffer full, flow stopped) is held, not
  dropped: Faust drops it and later commits past the hole;
- every seek is counted per partition and fetched records carry the count they were taken at, so a
  fetch that was under way during a seek cannot be delivered after it;
- a full stream buffer pauses its topic instead of blocking the fetch loop, which also carries the
  control topics that may be needed to empty it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from typing import Any, Protocol

import faust.streams
import structlog
from faust.transport.consumer import Consumer
from faust.types import TP, ConsumerMessage
from faust.types.tuples import ack_lock
from mode.utils.futures import notify

from k2.errors import ConfigError, LogError, RetentionGapError
from k2.transport.acks import AckTracker
from k2.transport.batch import LogBatch
from k2.transport.company import MOST_OF_ONE, Companies
from k2.transport.positions import check_position
from k2.transport.registry import registry

log = structlog.get_logger(__name__)

#: Records that are unpacked before the first of a fetch is delivered.
_UNPACKED_AT_ONCE = 4_000
#: Seconds for a commit at the end of a wait that was given up.
_LAST_COMMIT_S = 2.0

# Faust's compiled stream iterator writes acks into the consumer's lists without calling `ack`, so
# batches read with a plain `async for` would never be committed. The one in Python calls it.
faust.streams._CStreamIterator = None


class RawBatch(Protocol):
    """Whole record batches of one partition as fetched; unpacked when they are delivered.

    `first_offset` is the position they were fetched from, `last_offset` the position after them
    less one: holes and control records are inside the range.
    """

    @property
    def first_offset(self) -> int: ...

    @property
    def last_offset(self) -> int: ...

    def unpack(self) -> LogBatch:
        """Columns of the records. Raises `LogCorruptError` for bytes that are not records."""


class Fetched(dict[TP, list[Any]]):
    """Records by partition and, per partition, the seek count they were taken at.

    The values are `RawBatch`es for opted-in topics and the driver's own records for others.
    """

    def __init__(self, records: Mapping[TP, list[Any]], seeks: Mapping[TP, int]) -> None:
        super().__init__(records)
        self.seeks = {tp: seeks.get(tp, 0) for tp in records}


class BatchMessage(ConsumerMessage):
    """A message whose value is a `LogBatch` and whose offset is the last record's."""

    ticket: int


class _ReadOffsets(defaultdict[TP, int | None]):
    """Faust's read offsets, without those of batch topics.

    Faust drops a message below the read offset and writes that offset after the delivery, so a
    seek back during a delivery would have the redelivered batches dropped. Seek counts do that
    work for batches.
    """

    def __init__(self, batch_topics: set[str]) -> None:
        super().__init__(lambda: None)
        self._batch_topics = batch_topics

    def __getitem__(self, tp: TP) -> int | None:
        return None if tp[0] in self._batch_topics else super().__getitem__(tp)


class BatchConsumerMixin(Consumer):
    """Faust consumer of record batches; a driver derives from it and its own consumer.

    The driver supplies Faust's abstract methods and:

    - `_getmany(active_partitions, timeout)`: returns `Fetched`, built in the same step that took
      the records, with `self.seek_counts`;
    - `_committed(tps)`: committed offsets, None where there is none;
    - `_seek_positions(positions)`: moves positions and, in the same step, calls `count_seeks`;
      so must whatever else moves a position (`seek_wait`);
    - `_wake_fetch()`: makes a waiting `_getmany` return early.

    `seek_to_committed` is this class's: drivers do not override it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.seek_counts: defaultdict[TP, int] = defaultdict(int)
        #: Kept for the life of the process: tickets of one partition are never used twice.
        self._trackers: defaultdict[TP, AckTracker] = defaultdict(AckTracker)
        #: Batch partitions whose position was set since they were assigned.
        self._positioned: set[TP] = set()
        self._held: dict[TP, deque[tuple[int, Any]]] = {}
        self._full_topics: set[str] = set()
        self._leaving: frozenset[TP] = frozenset()
        self._wakeup = asyncio.Event()
        super().__init__(*args, **kwargs)
        self.registry = registry(self.app)
        self._read_offset = _ReadOffsets(self.registry.batch_topics)
        if self.registry.before_revoke and not self.app.conf.stream_wait_empty:
            raise ConfigError(
                "stream_wait_empty=False has no moment for the before_revoke hooks; set it to True"
            )

    # --- what the driver supplies -------------------------------------------------------------

    async def _committed(self, tps: Collection[TP]) -> dict[TP, int | None]:
        raise NotImplementedError

    async def _seek_positions(self, positions: Mapping[TP, int]) -> None:
        raise NotImplementedError

    def _wake_fetch(self) -> None:
        raise NotImplementedError

    def count_seeks(self, tps: Iterable[TP]) -> None:
        """Make what was fetched from `tps` before this call undeliverable."""
        for tp in tps:
            self.seek_counts[tp] += 1

    def carries_batches(self, tp: TP) -> bool:
        """True for a partition of an opted-in topic."""
        return tp.topic in self.registry.batch_topics

    # --- fetching -----------------------------------------------------------------------------

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:  # noqa: ASYNC109
        """Yield what may be delivered now: single messages first, then a batch per partition."""
        if not self.flow_active:
            await self.wait(self.can_resume_flow)
        self._wakeup.clear()
        await self._fetch(0.0 if self._ready() else timeout)
        if self.should_stop:
            return
        generation = self.app.consumer_generation_id
        self._bring_together()
        for tp, record in self._deliveries():
            self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
            message = self._to_message(tp, record)
            if message is not None:
                yield tp, message
            if self.app.consumer_generation_id != generation:
                return

    async def _fetch(self, timeout: float) -> None:  # noqa: ASYNC109
        wanted: set[TP] | None = None
        if not self.app.client_only:
            active: set[TP] = self._get_active_partitions()
            wanted = {tp for tp in active if tp not in self._held and self._may_fetch(tp)}
        if wanted is None or wanted:
            records = await self._getmany(active_partitions=wanted, timeout=timeout)
            for tp, found in records.items():
                count = records.seeks[tp]
                self._held.setdefault(tp, deque()).extend((count, record) for record in found)
        elif timeout:
            # Everything is paused or full: wait for a change, not for a second.
            await self.wait_first(self._wakeup.wait(), timeout=timeout)
        else:
            await self.sleep(0)

    def _may_fetch(self, tp: TP) -> bool:
        return tp.topic not in self._full_topics and (
            tp in self._positioned or not self.carries_batches(tp)
        )

    def _may_deliver(self, tp: TP) -> bool:
        if not self.flow_active:
            return False
        if self.app.client_only:
            return True
        if self.carries_batches(tp):
            return tp in self._active_partitions and self._may_fetch(tp)
        return tp in self._active_partitions or tp in self._buffered_partitions

    def _ready(self) -> bool:
        return any(self._may_deliver(tp) for tp in self._held)

    def _bring_together(self) -> None:
        """Unpack what is small and next of its partition before the first is worked on."""
        companies, left = Companies(), _UNPACKED_AT_ONCE
        for tp, held in self._held.items():
            if not held or not self.carries_batches(tp) or not self._may_deliver(tp):
                continue
            count, record = held[0]
            if count != self.seek_counts[tp] or isinstance(record, LogBatch):
                continue
            records = record.last_offset - record.first_offset + 1
            if records <= min(MOST_OF_ONE, left):
                left -= records
                held.popleft()  # also when it is damaged, which raises
                batch = record.unpack()
                held.appendleft((count, batch))
                companies.add(batch)

    def _deliveries(self) -> Iterator[tuple[TP, Any]]:
        """Held records in turn; control and changelog topics before batches."""
        plain = [tp for tp in self._held if not self.carries_batches(tp)]
        while plain:
            for tp in plain:
                yield from self._take(tp)
            plain = [tp for tp in plain if tp in self._held and self._may_deliver(tp)]
        for tp in list(self._held):
            if self.carries_batches(tp):
                yield from self._take(tp)

    def _take(self, tp: TP) -> Iterator[tuple[TP, Any]]:
        held = self._held.get(tp)
        while held:
            if held[0][0] != self.seek_counts[tp]:
                held.popleft()  # fetched before a seek
            elif self._may_deliver(tp):
                yield tp, held.popleft()[1]
                break
            else:
                return
        if not held and self._held.get(tp) is held:
            self._held.pop(tp, None)

    def _to_message(self, tp: TP, record: Any) -> Any:
        """The message of a record; None for a batch that holds no record."""
        if not self.carries_batches(tp):
            return super()._to_message(tp, record)
        batch: LogBatch = record if isinstance(record, LogBatch) else record.unpack()
        tracker = self._trackers[tp]
        if tracker.end is not None and batch.first_offset > tracker.end:
            raise RetentionGapError(
                f"{tp.topic}[{tp.partition}]: reading jumped from offset {tracker.end} to "
                f"{batch.first_offset}; retention overtook the consumer. Keep records longer, or "
                "accept the loss by moving the stored position to the earliest offset",
                topic=tp.topic,
                partition=tp.partition,
                position=tracker.end,
                earliest=batch.first_offset,
            )
        ticket = tracker.add(batch.first_offset, batch.last_offset)
        if not len(batch):
            tracker.ack(ticket)
            return None
        message = BatchMessage(
            tp.topic,
            tp.partition,
            batch.last_offset,
            float(batch.timestamps_ms[-1]) / 1000.0,
            0,
            None,
            None,
            batch,
            None,
            tp=tp,
            generation_id=self.app.consumer_generation_id,
        )
        message.ticket = ticket
        return message

    # --- pressure -----------------------------------------------------------------------------

    def on_buffer_full(self, tp: TP) -> None:
        """Stop the whole topic: the next partition's batch would block the fetch loop."""
        if self.carries_batches(tp):
            self._full_topics.add(tp.topic)
        else:
            super().on_buffer_full(tp)

    def on_buffer_drop(self, tp: TP) -> None:
        if self.carries_batches(tp):
            self._full_topics.discard(tp.topic)
            self._wake()
        else:
            super().on_buffer_drop(tp)

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        super().resume_partitions(tps)
        self._wake()

    def resume_flow(self) -> None:
        super().resume_flow()
        self._wake()

    def _wake(self) -> None:
        self._wakeup.set()
        self._wake_fetch()

    # --- acks and commits ---------------------------------------------------------------------

    def ack(self, message: Any) -> bool:
        """Mark a message as done; its range counts once all before it is done too."""
        if not isinstance(message, BatchMessage):
            return bool(super().ack(message))
        with ack_lock:
            if message.acked:
                return False
            message.acked = True
            if not self.app.topics.acks_enabled_for(message.topic):
                return False
            self._unacked_messages.discard(message)
            acked = self._trackers[message.tp].ack(message.ticket)
            self._n_acked += acked
            notify(self._waiting_for_ack)
            return acked

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        yield from super()._filter_tps_with_pending_acks(topics)
        for tp, tracker in list(self._trackers.items()):
            chosen = topics is None or tp in topics or tp.topic in topics
            if chosen and tracker.committable() is not None:
                yield tp

    def _new_offset(self, tp: TP) -> int | None:
        if not self.carries_batches(tp):
            return super()._new_offset(tp)  # type: ignore[no-any-return]
        offset = self._trackers[tp].committable()
        return None if offset is None else self.registry.positions.ceiling(tp, offset)

    # --- positions ----------------------------------------------------------------------------

    async def seek_to_committed(self) -> Mapping[TP, int | None]:
        """Move to where each consumer has to start; Faust calls it after table recovery.

        Raises `RetentionGapError` or `LogError` for a position the log cannot serve, and
        `LogError` when the positions are not known within `broker_request_timeout`, since Faust
        would go on without them.
        """
        limit_s = self.app.conf.broker_request_timeout * 0.9
        try:
            async with asyncio.timeout(limit_s):
                return await self._seek_to_start()
        except TimeoutError as exc:
            raise LogError(
                f"start positions were not known within {limit_s:.0f} s; see what the resolvers "
                "wait for, or raise K2_KAFKA_REQUEST_TIMEOUT_S"
            ) from exc

    async def _seek_to_start(self) -> dict[TP, int | None]:
        tps: set[TP] = self.assignment()
        batches = {tp for tp in tps if self.carries_batches(tp)}
        stateful = {tp for tp in tps if tp.topic in self.registry.positions}
        start: dict[TP, int | None] = {}
        if tps - stateful:
            start.update(await self._committed(tps - stateful))
        start.update(await self.registry.positions.resolve(stateful))
        checked = batches | stateful
        if checked:
            earliest = await self.earliest_offsets(*checked)
            ends = await self.highwaters(*checked)
            for tp in checked:
                position = start.get(tp)
                start[tp] = position = earliest[tp] if position is None else position
                check_position(tp, position, earliest[tp], ends[tp])
        await self._move({tp: at for tp, at in start.items() if at or (tp in checked)})
        return start

    async def _move(self, positions: Mapping[TP, int | None]) -> None:
        moves = {tp: at for tp, at in positions.items() if at is not None}
        self._positioned -= moves.keys()
        if moves:
            await self._seek_positions(moves)
        for tp, at in moves.items():
            self._held.pop(tp, None)
            if self.carries_batches(tp):
                self._trackers[tp].seek(at)
                self._positioned.add(tp)
        self._wake()

    async def seek(self, partition: TP, offset: int) -> None:
        """Go on reading at `offset`; safe while the consumer flows.

        Batches delivered before are not called back; their acks count no more.
        """
        if self.carries_batches(partition):
            await self._move({partition: offset})
        else:
            await super().seek(partition, offset)

    # --- rebalancing --------------------------------------------------------------------------

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        self._leaving = frozenset(revoked)
        try:
            await super().on_partitions_revoked(revoked)
        finally:
            self._leaving = frozenset()
            self._positioned -= revoked
            for tp in revoked:
                self._held.pop(tp, None)
                if tp in self._trackers:
                    self._trackers[tp].seek(None)
            self.count_seeks(revoked)
            self._full_topics.clear()

    async def wait_empty(self) -> None:
        """Let the hooks flush, then wait for the streams as Faust does.

        Faust tells apps of a revocation only after this wait, when a sink that holds events until
        its commit would have blocked it.
        """
        leaving = self._leaving or frozenset(self.assignment())
        if leaving:
            for hook in self.registry.before_revoke:
                await hook(leaving)
        await self._wait_for_streams()

    async def _wait_for_streams(self) -> None:
        """Faust's own wait, which has no end while a stream holds an event, made bounded."""
        waiting = asyncio.ensure_future(super().wait_empty())
        limit_s = self.registry.handover_s()
        await asyncio.wait({waiting}, timeout=limit_s)
        if not waiting.done():
            log.warning(
                "streams_not_waited_for",
                after_s=limit_s,
                unacknowledged=len(self._unacked_messages),
                topics=sorted({message.topic for message in self._unacked_messages}),
            )
            # Acks of them count no more once the positions are set anew. Without them Faust's wait
            # ends by itself after a last commit; a plain cancel is swallowed in its loop.
            self._unacked_messages.clear()
            notify(self._waiting_for_ack)
            await asyncio.wait({waiting}, timeout=_LAST_COMMIT_S)
        if waiting.done():
            await waiting
        else:
            waiting.cancel()
            log.warning("last_commit_not_confirmed", after_s=_LAST_COMMIT_S)
