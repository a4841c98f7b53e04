"""One reader of `k2 bench transport`, in a process of its own; prints records per second."""

from __future__ import annotations

import asyncio
import os
import sys
import time
import uuid
from typing import Any, NoReturn

import faust
from aiokafka import AIOKafkaConsumer, TopicPartition

from k2.settings import settings
from k2.transport.registry import batch_topic
from k2.transport.security import aiokafka_options


class Rate:
    """Counts deliveries and ends the process with the rate once all are there."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._seen = 0
        self._first = 0
        self._started_s = 0.0

    def add(self, count: int) -> None:
        """Count a delivery; the first one starts the clock and is left out."""
        if not self._seen:
            self._first, self._started_s = count, time.perf_counter()
        self._seen += count
        if self._seen >= self._wanted:
            self._finish()

    def _finish(self) -> NoReturn:
        elapsed_s = time.perf_counter() - self._started_s
        # Past `sys.stdout`, which Faust's worker turns into log lines.
        os.write(1, f"{(self._seen - self._first) / elapsed_s}\n".encode())
        # The group is never used again; an orderly exit would only take time.
        os._exit(0)


def _app(servers: str, scheme: str) -> Any:
    brokers = ";".join(f"{scheme}://{server}" for server in servers.split(","))
    return faust.App(
        f"k2-bench-{uuid.uuid4().hex[:8]}",
        broker=brokers,
        web_enabled=False,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
    )


def plain_faust(servers: str, topic: str, rate: Rate) -> None:
    """What a Faust user writes: batches by `take`."""
    app = _app(servers, "kafka")
    source = app.topic(topic, key_serializer="raw", value_serializer="raw", internal=True)

    @app.agent(source)  # type: ignore[untyped-decorator]
    async def reader(stream: Any) -> None:
        async for values in stream.take(1000, within=5):
            rate.add(len(values))

    faust.Worker(app, loglevel="WARNING").execute_from_commandline()


def k2(servers: str, topic: str, rate: Rate) -> None:
    """One event per record batch."""
    app = _app(servers, "k2kafka")
    source = batch_topic(app, topic, partitions=settings().kafka.partitions)

    @app.agent(source)  # type: ignore[untyped-decorator]
    async def reader(stream: Any) -> None:
        async for batch in stream:
            rate.add(len(batch))

    faust.Worker(app, loglevel="WARNING").execute_from_commandline()


def aiokafka(servers: str, topic: str, rate: Rate) -> None:
    """aiokafka's own loop, nothing around it."""
    asyncio.run(_aiokafka(servers, topic, rate))


async def _aiokafka(servers: str, topic: str, rate: Rate) -> None:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=servers,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        **aiokafka_options(settings().kafka),
    )
    await consumer.start()
    await consumer._client._wait_on_metadata(topic)
    consumer.assign([TopicPartition(topic, n) for n in consumer.partitions_for_topic(topic)])
    while True:
        found = await consumer.getmany(timeout_ms=1000)
        count = sum(map(len, found.values()))
        if count:
            rate.add(count)


if __name__ == "__main__":
    name, servers, topic, records = sys.argv[1:]
    {"plain_faust": plain_faust, "k2": k2, "aiokafka": aiokafka}[name](
        servers, topic, Rate(int(records))
    )
