"""Faust's producer over the embedded log: an append where Kafka has a request."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from faust.transport.producer import Producer as FaustProducer
from faust.types import TP, RecordMetadata

from k2.errors import ConfigError, LogError
from k2.transport.batch import OutBatch
from k2.transport.fail_stop import FailStop
from k2.transport.local.consumer import choose_partition
from k2.transport.local.format import Builder, finish, new_builder, payload_bytes
from k2.transport.local.partition import PartitionLog
from k2.transport.local.store import LogStore
from k2.transport.producer import check_batch, fill, too_large
from k2.transport.registry import registry

#: Up to this size encoding and appending take well below a millisecond and need no thread.
_INLINE_BYTES: Final = 65_536

Done = Callable[[int], None]


@dataclass(slots=True)
class _Job:
    """A filled builder on its way to the log; `done` gets its base offset, `failed` the error.

    `whole`: from `send_batch`; once one was refused, none follows.
    """

    builder: Builder
    done: Done
    failed: Callable[[BaseException], None]
    whole: bool = False


@dataclass(slots=True)
class _Lane:
    """The order of appends of one partition."""

    jobs: deque[_Job] = field(default_factory=deque)
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Gathering:
    """Single messages of one partition sent in the same turn of the event loop."""

    builder: Builder
    timestamps_ms: list[int] = field(default_factory=list)
    futures: list[asyncio.Future[RecordMetadata]] = field(default_factory=list)


class Producer(FaustProducer):
    """Producer of the transport `local://`.

    Guarantee: per partition, appends happen in the order of calls; a batch is in the log whole or
    not at all, and when its awaitable returns, consumers see it; after one that was refused the
    partition gets no other of `send_batch`. Messages sent one by one in one turn of the event loop
    share a record batch, and are taken again as soon as there is room.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._lanes: defaultdict[TP, _Lane] = defaultdict(_Lane)
        self._gathering: dict[TP, _Gathering] = {}
        self._fail_stop = FailStop()
        self._released = False

    @property
    def _store(self) -> LogStore:
        if self._released:
            # Asking would open the log again, behind the back of who starts next.
            raise LogError(f"the producer of {self.transport.directory} has stopped")
        store: LogStore = self.transport.store(self)
        return store

    async def on_start(self) -> None:
        """Open the log. Raises `ConfigError` when the app asks for transactions."""
        if self.app.in_transaction:
            raise ConfigError(
                "processing_guarantee='exactly_once' needs Kafka; the embedded log has no "
                "transactions, and K2's steps are idempotent without them"
            )
        self._released, self._fail_stop = False, FailStop()
        await asyncio.to_thread(lambda: self._store)
        await super().on_start()

    async def on_stop(self) -> None:
        """Append what is still on its way, then let go of the log."""
        await super().on_stop()
        while self._gathering or any(lane.task is not None for lane in self._lanes.values()):
            await self._drain()
        self._released = True
        await asyncio.to_thread(self.transport.release, self)

    # --- whole batches ------------------------------------------------------------------------

    def send_batch(self, batch: OutBatch) -> Awaitable[int]:
        """Append `batch` to its partition as one record batch; the result is its base offset.

        Its records are taken before this returns, so the caller may reuse its lists. Raises
        `LogError` at once for a batch that does not fit or a partition that does not exist, and
        from the awaitable when the log refuses it, or refused one before it.
        """
        check_batch(batch)
        tp = TP(batch.topic, batch.partition)
        self._store.partition(*tp)
        if batch.timestamps_ms is None:
            now = np.full(len(batch.values), self._now_ms(), np.int64)
            batch = replace(batch, timestamps_ms=now)
        limit = registry(self.app).kafka.max_batch_bytes
        builder = new_builder(self._codec, payload_bytes(batch.values), limit)
        if not fill(builder, batch) or builder.size() > limit:
            error = too_large(batch, limit)
            self._fail_stop.note(tp, error)
            raise error
        self._close_gathering(tp)
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._submit(tp, _Job(builder, _result(future), _failure(future), whole=True))
        return future

    # --- single messages ----------------------------------------------------------------------

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp: float | None,
        headers: Any,
        *,
        transactional_id: str | None = None,
    ) -> Awaitable[RecordMetadata]:
        """Schedule a message; the awaitable returned is done once it is in the log."""
        pairs = list(headers.items() if isinstance(headers, Mapping) else headers or ())
        self.app.on_produce_message.send(
            key=key, value=value, partition=partition, timestamp=timestamp, headers=pairs
        )
        if partition is None:
            partition = choose_partition(self._store, topic, key)
        self._store.partition(topic, partition)
        tp = TP(topic, partition)
        timestamp_ms = int(timestamp * 1000.0) if timestamp else self._now_ms()
        gathering = self._gathering.get(tp)
        if gathering is None:
            gathering = self._gathering[tp] = _Gathering(new_builder(self._codec, _INLINE_BYTES))
            asyncio.get_running_loop().call_soon(self._close_gathering, tp)
        future: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()
        gathering.builder.append(len(gathering.futures), timestamp_ms, key, value, pairs)
        gathering.futures.append(future)
        gathering.timestamps_ms.append(timestamp_ms)
        if gathering.builder.size() > _INLINE_BYTES:
            self._close_gathering(tp)
        return future

    async def send_and_wait(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp: float | None,
        headers: Any,
        *,
        transactional_id: str | None = None,
    ) -> RecordMetadata:
        """Send a message and return once it is in the log."""
        return await (await self.send(topic, key, value, partition, timestamp, headers))

    def _close_gathering(self, tp: TP) -> None:
        gathering = self._gathering.pop(tp, None)
        if gathering is None:
            return

        def done(base: int) -> None:
            pairs = zip(gathering.futures, gathering.timestamps_ms, strict=True)
            for offset, (future, timestamp_ms) in enumerate(pairs, base):
                if not future.done():
                    future.set_result(
                        RecordMetadata(tp.topic, tp.partition, tp, offset, timestamp_ms, 0)
                    )

        def failed(exc: BaseException) -> None:
            for future in gathering.futures:
                if not future.done():
                    future.set_exception(exc)

        self._submit(tp, _Job(gathering.builder, done, failed))

    # --- appending ----------------------------------------------------------------------------

    def _submit(self, tp: TP, job: _Job) -> None:
        lane = self._lanes[tp]
        small = job.builder.size() <= _INLINE_BYTES
        if lane.task is None and small and self._store.fsync_s:
            try:
                self._check(tp, job)
                job.done(self._append(tp, finish(job.builder)))
            except Exception as exc:  # noqa: BLE001 - whoever waits for the job gets it
                self._fail(tp, job, exc)
            return
        lane.jobs.append(job)
        if lane.task is None:
            lane.task = asyncio.ensure_future(self._work_off(tp, lane))

    async def _work_off(self, tp: TP, lane: _Lane) -> None:
        """Compress (and sync) in threads, one job after the other."""
        try:
            while lane.jobs:
                job = lane.jobs[0]
                try:
                    self._check(tp, job)
                    job.done(await asyncio.to_thread(self._encode_and_append, tp, job.builder))
                except Exception as exc:  # noqa: BLE001 - whoever waits for the job gets it
                    self._fail(tp, job, exc)
                finally:
                    lane.jobs.popleft()
        finally:
            lane.task = None

    def _check(self, tp: TP, job: _Job) -> None:
        if job.whole:
            self._fail_stop.check(tp)

    def _fail(self, tp: TP, job: _Job, exc: Exception) -> None:
        if job.whole:
            self._fail_stop.note(tp, exc)
        job.failed(exc)

    def _encode_and_append(self, tp: TP, builder: Builder) -> int:
        return self._append(tp, finish(builder))

    def _append(self, tp: TP, batch: bytearray) -> int:
        return self._partition(tp).append(batch)

    def _partition(self, tp: TP) -> PartitionLog:
        return self._store.partition(tp.topic, tp.partition)

    async def _drain(self) -> None:
        for tp in list(self._gathering):
            self._close_gathering(tp)
        tasks = [lane.task for lane in self._lanes.values() if lane.task is not None]
        if tasks:
            await asyncio.wait(tasks)

    async def flush(self) -> None:
        """Wait until everything sent so far is in the log or has failed."""
        await self.buffer.flush()
        await self._drain()

    # --- topics -------------------------------------------------------------------------------

    async def create_topic(self, topic: str, partitions: int, *args: Any, **kwargs: Any) -> None:
        """Create a topic unless it exists. Raises `ConfigError` for another partition count."""
        await self.transport.create_topic(self._store, topic, partitions, *args, **kwargs)

    def key_partition(self, topic: str, key: bytes) -> TP:
        """The partition of a key: murmur2, as every Kafka client here."""
        return TP(topic, choose_partition(self._store, topic, key))

    def supports_headers(self) -> bool:
        """Record batches carry headers."""
        return True

    @property
    def _codec(self) -> str:
        return registry(self.app).kafka.compression

    def _now_ms(self) -> int:
        return self._store.clock.now_us() // 1_000


def _result(future: asyncio.Future[int]) -> Done:
    return lambda base: None if future.done() else future.set_result(base)


def _failure(future: asyncio.Future[int]) -> Callable[[BaseException], None]:
    return lambda exc: None if future.done() else future.set_exception(exc)
