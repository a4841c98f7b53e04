"""A log of record opened to be written to beside no worker: by loads, migrations, refills."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from k2.catalogue import topic_specs
from k2.clock import SYSTEM_CLOCK
from k2.codecs import Codecs, open_registry
from k2.settings import Settings
from k2.steps.dead_letters import DeadLetters
from k2.steps.publish import Partitioner, Publisher
from k2.topics import MarketTopic


@dataclass(frozen=True, slots=True)
class OpenLog:
    """The log of record of one topic, to be written to; in its incarnation `epoch`."""

    transport: Any
    epoch: str
    publisher: Publisher
    dead_letters: DeadLetters


@asynccontextmanager
async def opened(settings: Settings, topic: MarketTopic) -> AsyncIterator[OpenLog]:
    """The log as configured, its topics made. Raises `LogLockedError` while a worker has it."""
    from k2.faust_app import K2App  # noqa: PLC0415 - takes a second, and errors come before it

    settings.core.data_dir.mkdir(parents=True, exist_ok=True)
    app = K2App.of(settings)
    transport = app.transport
    try:
        await transport.ensure_topics(topic_specs(settings))
        epochs = await transport.epochs([topic.log])
        codecs = await asyncio.to_thread(Codecs.open, open_registry(settings), [topic])
        await app.maybe_start_producer()
        max_bytes, producer = settings.kafka.max_batch_bytes // 2, app.producer
        partitioner = Partitioner(settings.kafka.partitions)
        codec = codecs.of(topic.log)
        yield OpenLog(
            transport,
            epochs[topic.log],
            Publisher(topic, producer, codec, partitioner, SYSTEM_CLOCK, max_bytes),
            DeadLetters(topic, producer, codecs.of(topic.dlq), max_bytes),
        )
    finally:
        await app.producer.stop()
        await transport.close()
