"""Where the partitions of a Kafka cluster begin and end.

aiokafka asks, not librdkafka's admin client: that one asks with the leader it knew before a broker
restarted, answers "invalid" while a leader is being found, and tries to connect to a broker that is
down without a pause (two threads of each worker spun for as long as one of three brokers was away).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from faust.types import TP

from k2.errors import LogError
from k2.settings import Kafka
from k2.transport.security import aiokafka_options


class KafkaOffsets:
    """Asks the leader of each partition; connects with the first question."""

    def __init__(self, bootstrap_servers: str, kafka: Kafka) -> None:
        self._servers = bootstrap_servers
        self._kafka = kafka
        self._consumer: Any = None
        self._opening = asyncio.Lock()
        self._asking: set[asyncio.Task[dict[TP, tuple[int, int]]]] = set()

    async def bounds(self, tps: Collection[TP]) -> dict[TP, tuple[int, int]]:
        """(earliest offset, offset of the next record) of partitions that exist.

        Raises `LogError` when no leader answers in time, or when `close` comes first.
        """
        task = asyncio.create_task(self._bounds(tps))
        self._asking.add(task)
        try:
            await asyncio.wait([task])
        finally:
            self._asking.discard(task)
            task.cancel()
        if task.cancelled():
            raise self._failed("the client was closed")
        try:
            return task.result()
        except KafkaError as exc:
            raise self._failed(str(exc) or type(exc).__name__) from exc

    async def _bounds(self, tps: Collection[TP]) -> dict[TP, tuple[int, int]]:
        consumer = await self._started()
        places = {tp: TopicPartition(*tp) for tp in tps}
        earliest = await consumer.beginning_offsets(list(places.values()))
        ends = await consumer.end_offsets(list(places.values()))
        return {tp: (earliest[place], ends[place]) for tp, place in places.items()}

    async def _started(self) -> Any:
        async with self._opening:
            if self._consumer is not None:
                return self._consumer
            consumer = AIOKafkaConsumer(
                bootstrap_servers=self._servers,
                client_id="k2-offsets",
                group_id=None,
                enable_auto_commit=False,
                request_timeout_ms=int(self._kafka.request_timeout_s * 1000),
                **aiokafka_options(self._kafka),
            )
            try:
                await consumer.start()
            except BaseException:
                # Also what did not start holds connections and tasks that only `stop` lets go.
                await consumer.stop()
                raise
            self._consumer = consumer
            return consumer

    async def close(self) -> None:
        """End the questions under way, and the connections."""
        asking = list(self._asking)
        for task in asking:
            task.cancel()
        if asking:
            await asyncio.wait(asking)
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.stop()

    def _failed(self, why: str) -> LogError:
        return LogError(
            f"Kafka at {self._servers} did not say where partitions begin and end: {why}; see "
            "K2_KAFKA_BOOTSTRAP_SERVERS",
            servers=self._servers,
        )
