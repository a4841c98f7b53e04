"""Where replayed records go: lines of a file or of standard output, or a Kafka topic."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import BinaryIO, Final

import orjson
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from k2.errors import LogError
from k2.replay.records import Record
from k2.settings import Kafka
from k2.transport.security import advice, aiokafka_options

#: Bytes held back from a file, so that a record does not cost a system call.
_HELD_BYTES: Final = 64 * 1024
_UNSENT: Final = 10_000


class Target(ABC):
    """Takes records in order. `finish` returns once all have arrived."""

    @abstractmethod
    async def take(self, record: Record) -> None: ...

    @abstractmethod
    async def finish(self) -> None: ...


def json_line(record: Record) -> bytes:
    """A record as one JSON object; decimals are text."""
    return orjson.dumps(record.shown)


class Lines(Target):
    """One line per record. `hold`: gather lines (nobody waits for them)."""

    def __init__(self, out: BinaryIO, line: Callable[[Record], bytes], *, hold: bool) -> None:
        self._out, self._line = out, line
        self._most = _HELD_BYTES if hold else 0
        self._held = bytearray()

    async def take(self, record: Record) -> None:
        self._held += self._line(record) + b"\n"
        if len(self._held) > self._most:
            self._write()

    async def finish(self) -> None:
        self._write()

    def _write(self) -> None:
        self._out.write(bytes(self._held))
        self._out.flush()
        self._held.clear()


class KafkaTarget(Target):
    """JSON values of a topic: key is the symbol, timestamp the exchange's, order per symbol."""

    def __init__(self, kafka: Kafka, servers: str, topic: str) -> None:
        self._kafka, self._servers, self._topic = kafka, servers, topic
        self._producer: AIOKafkaProducer | None = None
        self._sent: list[asyncio.Future[object]] = []

    async def take(self, record: Record) -> None:
        try:
            producer = self._producer or await self._start()
            self._sent.append(
                await producer.send(
                    self._topic,
                    json_line(record),
                    key=record.row["symbol"].encode(),
                    timestamp_ms=record.ts_us // 1_000,
                )
            )
            if len(self._sent) >= _UNSENT:
                await self._arrived()
        except KafkaError as exc:
            raise self._refused(exc) from exc

    async def finish(self) -> None:
        if self._producer is None:
            return
        try:
            await self._arrived()
        except KafkaError as exc:
            raise self._refused(exc) from exc
        finally:
            await self._producer.stop()

    async def _arrived(self) -> None:
        sent, self._sent = self._sent, []
        await asyncio.gather(*sent)

    async def _start(self) -> AIOKafkaProducer:
        made = AIOKafkaProducer(
            bootstrap_servers=self._servers,
            enable_idempotence=True,
            linger_ms=20,
            **aiokafka_options(self._kafka),
        )
        self._producer = made
        await made.start()
        return made

    def _refused(self, exc: KafkaError) -> LogError:
        return LogError(
            f"Kafka at {self._servers} does not take records of {self._topic!r} ({exc}); "
            f"{advice(self._kafka)}",
            topic=self._topic,
        )
