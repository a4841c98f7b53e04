"""Writing record batches: what is sent together is in the log together, in the order of calls."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable
from typing import Any

import structlog
from aiokafka.errors import KafkaError, KafkaTimeoutError
from faust.exceptions import ProducerSendError
from faust.transport.drivers.aiokafka import Producer as AiokafkaProducer
from faust.types import TP

from k2.errors import LogError
from k2.settings import Kafka
from k2.stopping import FLUSH_S
from k2.transport.batch import OutBatch
from k2.transport.encode import Lz4BatchBuilder
from k2.transport.fail_stop import FailStop
from k2.transport.registry import registry
from k2.transport.security import aiokafka_options
from k2.transport.single import failure

log = structlog.get_logger(__name__)

#: So long after the last batch it took a broker may have forgotten this producer: it does after a
#: day (`producer.id.expiration.ms`), or when retention deletes that batch.
_REMEMBERED_S = 60.0


def check_batch(batch: OutBatch) -> None:
    """Raises `LogError` for a batch no log could append."""
    place = f"{batch.topic}[{batch.partition}]"
    if not batch.values:
        raise LogError(
            f"batch for {place} has no record; one that only carries headers has a single "
            "record with the value None"
        )
    stamps = batch.timestamps_ms
    if len(batch.keys) != len(batch.values) or (
        stamps is not None and len(stamps) != len(batch.values)
    ):
        raise LogError(
            f"batch for {place} has {len(batch.values)} values but {len(batch.keys)} keys"
            f"{'' if stamps is None else f' and {len(stamps)} timestamps'}; all need one length"
        )


def too_large(batch: OutBatch, limit: int) -> LogError:
    """The error of a batch above `limit` bytes."""
    return LogError(
        f"a batch of {len(batch.values)} records for {batch.topic}[{batch.partition}] is larger "
        f"than {limit} bytes; send fewer records at once, or raise K2_KAFKA_MAX_BATCH_BYTES",
        topic=batch.topic,
        partition=batch.partition,
        records=len(batch.values),
        limit=limit,
    )


def fill(builder: Any, batch: OutBatch) -> bool:
    """Append all records to aiokafka's `DefaultRecordBatchBuilder`; False when it is full."""
    append = builder.append
    stamps: list[int | None] = [None] * len(batch.values)
    if batch.timestamps_ms is not None:
        stamps = batch.timestamps_ms.tolist()
    none: list[tuple[str, bytes]] = []
    headers = list(batch.headers)
    for index, (stamp, key, value) in enumerate(zip(stamps, batch.keys, batch.values, strict=True)):
        if append(index, stamp, key, value, headers) is None:
            return False
        headers = none
    return True


class Producer(AiokafkaProducer):
    """Faust's producer, idempotent, plus `send_batch`.

    Guarantee: per partition, batches are appended in the order `send_batch` was called, each whole
    and once, also when the broker fails and comes back; after one that was refused the partition
    gets no other. Plain `send` works beside it, until a refusal: by its numbers the broker may then
    refuse that too.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._locks: defaultdict[TP, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._sending: set[asyncio.Task[int]] = set()
        self._fail_stop = FailStop()
        #: When a partition took its last batch, seconds of the event loop.
        self._taken_s: dict[TP, float] = {}

    @property
    def _kafka(self) -> Kafka:
        return registry(self.app).kafka

    def _settings_default(self) -> dict[str, Any]:
        kafka = self._kafka
        return {
            **super()._settings_default(),
            "acks": "all",
            "enable_idempotence": True,
            "compression_type": None if kafka.compression == "none" else kafka.compression,
            "linger_ms": kafka.linger_ms,
            "max_batch_size": kafka.max_batch_bytes,
            "max_request_size": kafka.max_message_bytes,
            "request_timeout_ms": int(kafka.request_timeout_s * 1000),
        }

    def _settings_auth(self) -> dict[str, Any]:
        return aiokafka_options(self._kafka)

    async def on_start(self) -> None:
        """Connect, as a producer the brokers do not know yet."""
        self._fail_stop, self._taken_s = FailStop(), {}
        await super().on_start()

    def send_batch(self, batch: OutBatch) -> Awaitable[int]:
        """Append `batch` to its partition as one record batch; the result is its base offset.

        It is encoded before this returns, so the caller may reuse its lists. The base offset is
        -1 in the rare case that a retry was recognised by the broker but its place forgotten.
        Raises `LogError` at once for a batch that does not fit, and from the awaitable when the
        log refuses it, or refused one before it. Cancelling the awaitable takes nothing back.
        """
        check_batch(batch)
        tp = TP(batch.topic, batch.partition)
        builder = self._new_builder()
        fits = fill(builder._builder, batch)
        builder._relative_offset = len(batch.values)
        builder.close()  # nothing else may join it
        limit = self._kafka.max_batch_bytes
        if not fits or builder.size() > limit:
            error = too_large(batch, limit)
            self._fail_stop.note(tp, error)
            raise error
        task = asyncio.ensure_future(self._deliver(tp, builder))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        task.add_done_callback(failure)
        return asyncio.shield(task)

    async def send(self, topic: str, *args: Any, **options: Any) -> Awaitable[Any]:
        """As Faust's. Raises `LogError` when the log does not take the record."""
        try:
            return await super().send(topic, *args, **options)  # type: ignore[no-any-return]
        except (ProducerSendError, KafkaError) as exc:
            raise LogError(f"{topic} did not take a record: {exc!r}", topic=topic) from exc

    def _new_builder(self) -> Any:
        producer = self._ensure_producer()
        if self._kafka.compression == "lz4":
            return Lz4BatchBuilder(self._kafka.max_batch_bytes)
        return producer.create_batch()

    async def _deliver(self, tp: TP, builder: Any) -> int:
        try:
            # The lock is fair and tasks start in the order they were made, so batches queue up in
            # the order of calls; aiokafka alone lets a later one slip into a slot just freed.
            async with self._locks[tp]:
                self._fail_stop.check(tp)
                future = await self._enqueue(tp, builder)
                if not self._is_known(tp):
                    # By its number a broker refuses what follows a refused batch; one that does not
                    # know this producer would take any number, so the first batch goes alone.
                    await future
            metadata = await future
        except BaseException as exc:
            self._fail_stop.note(tp, exc)
            if not isinstance(exc, KafkaError):
                raise
            raise LogError(
                f"{tp.topic}[{tp.partition}] did not take a batch: {exc!r}",
                topic=tp.topic,
                partition=tp.partition,
            ) from exc
        self._taken_s[tp] = asyncio.get_running_loop().time()
        return -1 if metadata is None else int(metadata.offset)

    def _is_known(self, tp: TP) -> bool:
        taken_s = self._taken_s.get(tp)
        now_s = asyncio.get_running_loop().time()
        return taken_s is not None and now_s - taken_s < _REMEMBERED_S

    async def _enqueue(self, tp: TP, builder: Any) -> Awaitable[Any]:
        producer = self._ensure_producer()
        partitions = await producer.partitions_for(tp.topic)
        if tp.partition not in partitions:
            raise LogError(
                f"topic {tp.topic!r} has no partition {tp.partition}; it has {len(partitions)}",
                topic=tp.topic,
                partition=tp.partition,
            )
        while True:
            try:
                return await producer.send_batch(  # type: ignore[no-any-return]
                    builder, tp.topic, partition=tp.partition
                )
            except KafkaTimeoutError:
                # The slot before this one is still being retried; giving up would let later
                # batches overtake. While its partition has a leader, an idempotent batch never
                # expires either.
                continue

    async def flush(self) -> None:
        """Wait until everything sent so far is in the log or has failed."""
        if self._sending:
            await asyncio.wait(list(self._sending))
        await super().flush()

    async def on_stop(self) -> None:
        """Bounded: with the log out of reach an idempotent batch would be retried for ever."""
        if self._sending:
            await asyncio.wait(list(self._sending), timeout=FLUSH_S)
        producer = self._producer
        try:
            async with asyncio.timeout(FLUSH_S):
                await super().on_stop()
        except TimeoutError:
            log.warning("producer_not_flushed", after_s=FLUSH_S, batches=len(self._sending))
            await producer._sender.close()
            await producer.client.close()
            for task in self._sending:
                task.cancel()  # nobody answers them any more
