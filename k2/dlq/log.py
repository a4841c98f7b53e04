"""Both logs as the commands need them: read dead letters from start to end, append records."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from confluent_kafka import KafkaError, KafkaException, Producer
from faust.types import TP

from k2.errors import LogError, LogLockedError
from k2.settings import Kafka, Settings
from k2.transport.batch import Headers, LogBatch
from k2.transport.kafka_admin import KafkaAdmin
from k2.transport.kafka_reader import KafkaReader
from k2.transport.local.format import encode
from k2.transport.local.reader import EmbeddedReader
from k2.transport.local.shared import acquire, release
from k2.transport.local.store import LogStore
from k2.transport.reader import LogReader
from k2.transport.security import librdkafka_options

_POLL_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Append:
    """One record for one partition."""

    tp: TP
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


class Log(Protocol):
    """What the commands need of a log."""

    async def bounds(self, tps: Sequence[TP]) -> dict[TP, tuple[int, int]]:
        """Earliest and end offset of each partition."""

    def reader(self) -> LogReader: ...

    async def append(self, records: Sequence[Append]) -> list[int]:
        """Append in order; the offset of each. Raises `LogError` when one was refused."""


async def read_all(log: Log, tps: Sequence[TP]) -> AsyncIterator[LogBatch]:
    """Everything that is in the partitions now."""
    bounds = await log.bounds(tps)
    left = {tp: end for tp, (first, end) in bounds.items() if end > first}
    if not left:
        return
    reader = log.reader()
    await reader.start({tp: bounds[tp][0] for tp in left})
    try:
        while left:
            for batch in await reader.getmany(_POLL_S):
                yield batch
            left = {tp: end for tp, end in left.items() if reader.position(tp) < end}
    finally:
        await reader.stop()


class KafkaLog:
    """A cluster; workers may run beside it."""

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka
        self._admin = KafkaAdmin(kafka.bootstrap_servers, kafka)
        self._producer: Any = None

    async def bounds(self, tps: Sequence[TP]) -> dict[TP, tuple[int, int]]:
        return await self._admin.bounds(tps)

    def reader(self) -> LogReader:
        return KafkaReader(self._kafka.bootstrap_servers, self._kafka, client_id="k2-dlq")

    async def append(self, records: Sequence[Append]) -> list[int]:
        producer = self._open()
        offsets = [-1] * len(records)
        errors: list[KafkaError] = []

        def note(index: int) -> Any:
            def delivered(error: KafkaError | None, message: Any) -> None:
                if error is not None:
                    errors.append(error)
                else:
                    offsets[index] = message.offset()

            return delivered

        for index, record in enumerate(records):
            producer.produce(
                record.tp.topic,
                record.value,
                record.key,
                record.tp.partition,
                on_delivery=note(index),
                headers=list(record.headers),
            )
        producer.flush(self._kafka.request_timeout_s)
        if errors or -1 in offsets:
            why = errors[0].str() if errors else "no answer"
            raise LogError(f"Kafka did not take {offsets.count(-1)} of {len(records)}: {why}")
        return offsets

    def _open(self) -> Any:
        if self._producer is None:
            kafka = self._kafka
            self._producer = Producer(
                {
                    "bootstrap.servers": kafka.bootstrap_servers,
                    "enable.idempotence": True,
                    "message.max.bytes": kafka.max_message_bytes,
                    "delivery.timeout.ms": int(kafka.request_timeout_s * 1000),
                    **librdkafka_options(kafka),
                }
            )
        return self._producer

    async def close(self) -> None:
        await self._admin.close()


class EmbeddedLog:
    """The log of a data directory that no worker has open."""

    def __init__(self, store: LogStore, kafka: Kafka) -> None:
        self._store = store
        self._kafka = kafka

    async def bounds(self, tps: Sequence[TP]) -> dict[TP, tuple[int, int]]:
        logs = {tp: self._store.partition(tp.topic, tp.partition) for tp in tps}
        return {tp: (log.start_offset, log.end_offset) for tp, log in logs.items()}

    def reader(self) -> LogReader:
        directory = self._store.directory
        return EmbeddedReader(lambda: acquire(directory), release, self._kafka.batch_records)

    async def append(self, records: Sequence[Append]) -> list[int]:
        now_ms, codec = int(time.time() * 1_000), self._kafka.compression
        return [
            self._store.partition(*record.tp).append(
                encode([record.value], [record.key], [now_ms], record.headers, codec)
            )
            for record in records
        ]


@asynccontextmanager
async def open_log(settings: Settings) -> AsyncIterator[Log]:
    """The configured log. Raises `LogLockedError` saying what to do while a worker has it."""
    if not settings.embedded:
        kafka = KafkaLog(settings.kafka)
        try:
            yield kafka
        except KafkaException as exc:
            raise LogError(f"Kafka at {settings.kafka.bootstrap_servers}: {exc}") from exc
        finally:
            await kafka.close()
        return
    directory = settings.core.data_dir.absolute() / "log"
    if not directory.is_dir():
        raise LogError(
            f"there is no embedded log in {directory}; name its data directory with --data-dir or "
            "K2_DATA_DIR, or a Kafka with K2_KAFKA_BOOTSTRAP_SERVERS",
            directory=str(directory),
        )
    try:
        store = acquire(directory)
    except LogLockedError as exc:
        raise LogLockedError(
            f"the embedded log in {directory} is in use by the worker with process id "
            f"{exc.details.get('pid')}; stop it (kill -TERM {exc.details.get('pid')}), run this "
            "again, and start it again. On Kafka dead letters can be handled while workers run",
            **exc.details,
        ) from exc
    try:
        yield EmbeddedLog(store, settings.kafka)
    finally:
        release(store)
