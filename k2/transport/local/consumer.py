"""Faust's consumer over the embedded log: one member, every partition, reads from files."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

import structlog
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import ConsumerRecord
from faust.transport.consumer import Consumer as FaustConsumer
from faust.types import TP, ConsumerMessage
from mode import Service

from k2.errors import LogError
from k2.transport.local.assignment import assign_all
from k2.transport.local.follower import PARTITION_BYTES, Follower
from k2.transport.local.partition import PartitionLog
from k2.transport.local.segment import Chunk
from k2.transport.local.store import LogStore
from k2.transport.mixin import BatchConsumerMixin, Fetched
from k2.transport.unpack import RecordBatches, split

log = structlog.get_logger(__name__)

_partition_of = DefaultPartitioner()

#: Read at once from a topic that is delivered message by message: an object each, on the loop.
_SINGLES_BYTES: Final = 65_536


class LogConsumer(FaustConsumer):
    """The part that is the driver's own; `Consumer` adds record batches."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._follower = Follower()
        self._subscription: set[str] = set()
        self._assigned: set[TP] = set()
        self._subscribed = asyncio.Event()
        self._generation = 0

    @property
    def _store(self) -> LogStore:
        store: LogStore = self.transport.store(self)
        return store

    async def on_start(self) -> None:
        """Open the log, so that a worker that cannot have it stops at once."""
        await asyncio.to_thread(lambda: self._store)
        await super().on_start()

    async def on_stop(self) -> None:
        """Commit as Faust does, then let go of the log."""
        await super().on_stop()
        self._follower.close()
        await asyncio.to_thread(self.transport.release, self)

    def close(self) -> None:
        """Faust's way to make a fetch under way return at once."""
        self._follower.wake()

    # --- subscription -------------------------------------------------------------------------

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Take all partitions of these topics, soon: Faust waits for the return of this call
        before it can go through an assignment."""
        self._subscription = set(topics)
        self._subscribed.set()

    @Service.task
    async def _rebalancer(self) -> None:
        while not self.should_stop:
            await self.wait_for_stopped(self._subscribed)
            if self.should_stop:
                return
            self._subscribed.clear()
            await self._rebalance(set(self._subscription))

    async def _rebalance(self, topics: set[str]) -> None:
        if self.app.client_only:
            self._adopt(_all_partitions(self._store, topics), at_end=True)
            return
        self.app.on_rebalance_start()
        await self.on_partitions_revoked(set(self._assigned))
        tps = assign_all(self.app, self._store, topics)
        self._adopt(tps, at_end=self.app.conf.consumer_auto_offset_reset == "latest")
        self._generation += 1
        # Faust compares the two generations and ignores an assignment whose id it has not seen.
        self.app.consumer_generation_id = self._generation
        await self.on_partitions_assigned(set(tps), self._generation)

    def _adopt(self, tps: set[TP], *, at_end: bool) -> None:
        logs = {tp: self._store.partition(tp.topic, tp.partition) for tp in tps}
        self._assigned = set(tps)
        self._follower.follow(
            logs,
            {tp: one.end_offset if at_end else one.start_offset for tp, one in logs.items()},
        )

    def assignment(self) -> set[TP]:
        return set(self._assigned)

    # --- positions ----------------------------------------------------------------------------

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        mine = {(tp.topic, tp.partition): at for tp, at in offsets.items() if tp in self._assigned}
        try:
            await asyncio.to_thread(self._store.commit, self.app.conf.id, mine)
        except LogError as exc:
            # The offsets before stand, so nothing is lost; the next commit says more anyway.
            log.exception("commit_failed", error=exc.message)
            return False
        return True

    async def position(self, tp: TP) -> int | None:
        return self._follower.positions.get(tp)

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        return {tp: self._log(tp).start_offset for tp in partitions}

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        return {tp: self._log(tp).end_offset for tp in partitions}

    def highwater(self, tp: TP) -> int:
        return self._log(tp).end_offset

    def _log(self, tp: TP) -> PartitionLog:
        return self._store.partition(tp.topic, tp.partition)

    # --- topics -------------------------------------------------------------------------------

    async def create_topic(self, topic: str, partitions: int, *args: Any, **kwargs: Any) -> None:
        await self.transport.create_topic(self._store, topic, partitions, *args, **kwargs)

    def topic_partitions(self, topic: str) -> int | None:
        found = self._store.topics().get(topic)
        return None if found is None else found.meta.partitions

    def key_partition(
        self, topic: str, key: bytes | None, partition: int | None = None
    ) -> int | None:
        if partition is not None:
            return self._log(TP(topic, partition)).partition
        return choose_partition(self._store, topic, key)

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return TP(topic, partition)

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        return ConsumerMessage(
            record.topic,
            record.partition,
            record.offset,
            record.timestamp / 1000.0,
            record.timestamp_type,
            record.headers,
            record.key,
            record.value,
            record.checksum,
            record.serialized_key_size,
            record.serialized_value_size,
            tp,
            generation_id=self.app.consumer_generation_id,
        )


class Consumer(BatchConsumerMixin, LogConsumer):
    """Consumer of the transport `local://`."""

    async def _getmany(
        self,
        active_partitions: set[TP] | None,
        timeout: float,  # noqa: ASYNC109
    ) -> Fetched:
        follower = self._follower
        wanted = self._assigned if active_partitions is None else active_partitions
        ready = await follower.wait(wanted, timeout)
        self._reset_positions(ready)
        seeks = {tp: self.seek_counts[tp] for tp in ready}
        records: dict[TP, list[Any]] = {}
        limits = {
            tp: PARTITION_BYTES if self.carries_batches(tp) else _SINGLES_BYTES for tp in ready
        }
        for tp, chunk in (await follower.read(limits)).items():
            if self.seek_counts[tp] != seeks[tp] or tp not in follower.positions:
                continue  # moved while it was read
            records[tp] = self._unpacked(tp, follower.positions[tp], chunk)
            follower.positions[tp] = chunk.next_offset
        return Fetched(records, seeks)

    def _unpacked(self, tp: TP, position: int, chunk: Chunk) -> list[Any]:
        if self.carries_batches(tp):
            return batches(
                tp, position, chunk, self.highwater(tp), self.registry.kafka.batch_records
            )
        return [record for record in single_records(tp, chunk) if record.offset >= position]

    def _reset_positions(self, tps: Iterable[TP]) -> None:
        """As a Kafka consumer: what retention passed goes on at the earliest offset.

        Not for record batches: their position is a state's, and a jump would lose records.
        """
        for tp in tps:
            earliest = self._follower.log(tp).start_offset
            if self._follower.positions[tp] < earliest and not self.carries_batches(tp):
                self._follower.positions[tp] = earliest

    async def _seek_positions(self, positions: Mapping[TP, int]) -> None:
        for tp in positions:
            self._follower.log(tp)
        self._follower.positions.update(positions)
        self.count_seeks(positions)

    async def _committed(self, tps: Collection[TP]) -> dict[TP, int | None]:
        store, group = self._store, self.app.conf.id
        return {tp: store.committed(group, tp.topic, tp.partition) for tp in tps}

    async def seek_to_beginning(self, *partitions: TP) -> None:
        """Go to the earliest offsets."""
        await self.seek_wait(await self.earliest_offsets(*partitions))

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        await self._seek_positions(partitions)
        for tp, offset in partitions.items():
            if offset > 0:
                self._read_offset[tp] = offset
            else:
                self._read_offset.pop(tp, None)

    async def _seek(self, partition: TP, offset: int) -> None:
        await self._seek_positions({partition: offset})

    def _wake_fetch(self) -> None:
        self._follower.wake()


def batches(
    tp: TP, position: int, chunk: Chunk, highwater: int, max_records: int
) -> list[RecordBatches]:
    """A chunk as pieces of at most `max_records` that abut from `position` to its end."""
    pieces = split(
        tp,
        MemoryRecords(bytes(chunk.data)),
        position=position,
        highwater=highwater,
        max_records=max_records,
        check_crcs=False,  # checked when the chunk was read
    )
    if not pieces:
        return [RecordBatches(tp, position, chunk.next_offset - 1, highwater, [])]
    return pieces


def single_records(tp: TP, chunk: Chunk) -> list[ConsumerRecord]:
    """A chunk as aiokafka's record objects, for topics read message by message."""
    found: list[ConsumerRecord] = []
    records = MemoryRecords(bytes(chunk.data))
    while records.has_next():
        found.extend(_single(tp, record) for record in records.next_batch())
    return found


def _single(tp: TP, record: Any) -> ConsumerRecord:
    return ConsumerRecord(
        tp.topic,
        tp.partition,
        record.offset,
        record.timestamp,
        record.timestamp_type,
        record.key,
        record.value,
        None,
        -1 if record.key is None else len(record.key),
        -1 if record.value is None else len(record.value),
        tuple(record.headers),
    )


def choose_partition(store: LogStore, topic: str, key: bytes | None) -> int:
    """Kafka's default: murmur2 of the key; a random partition without one."""
    numbers = list(range(store.topic(topic).meta.partitions))
    return int(_partition_of(key, numbers, numbers))


def _all_partitions(store: LogStore, topics: Iterable[str]) -> set[TP]:
    return {
        TP(topic, number)
        for topic in topics
        for number in range(store.topic(topic).meta.partitions)
    }
