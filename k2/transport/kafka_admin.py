"""Topics of a Kafka cluster: made as specified, checked, identified."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec
from faust.types import TP

from k2.errors import ConfigError, LogError
from k2.settings import Kafka
from k2.transport.admin import TopicSpec
from k2.transport.security import librdkafka_options

log = structlog.get_logger(__name__)
_T = TypeVar("_T")

#: Answers that only mean a topic is so new that not every broker knows it.
_UNSETTLED = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
)
#: Seconds between two tries.
_SETTLE_S = 0.05


def topic_config(spec: TopicSpec, kafka: Kafka) -> dict[str, str]:
    """Kafka's settings of a topic made for `spec`."""
    return {
        "cleanup.policy": "compact" if spec.compacted else "delete",
        "retention.ms": "-1" if spec.retention_s is None else str(int(spec.retention_s * 1000)),
        "max.message.bytes": str(kafka.max_message_bytes),
        # As written: recompressing would cost the broker and tear K2's batches apart.
        "compression.type": "producer",
        "message.timestamp.type": "CreateTime",
        **spec.config,
    }


class KafkaAdmin:
    """`LogAdmin` over librdkafka, whose requests know topic ids; each call runs in a thread."""

    def __init__(self, bootstrap_servers: str, kafka: Kafka) -> None:
        self._servers = bootstrap_servers
        self._kafka = kafka
        self._client: Any = None

    async def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        await self._call(self._ensure_topics, specs)

    async def epochs(self, topics: Collection[str]) -> dict[str, str]:
        return await self._call(self._epochs, topics)

    async def bounds(self, tps: Collection[TP]) -> dict[TP, tuple[int, int]]:
        return await self._call(self._bounds, tps)

    async def close(self) -> None:
        self._client = None  # librdkafka closes with its last reference

    async def _call(self, work: Callable[[Any], _T], argument: Any) -> _T:
        deadline = time.monotonic() + self._kafka.request_timeout_s
        while True:
            try:
                return await asyncio.to_thread(work, argument)
            except KafkaException as exc:
                if exc.args[0].code() not in _UNSETTLED or time.monotonic() > deadline:
                    raise self._refused(exc) from exc
            await asyncio.sleep(_SETTLE_S)

    def _refused(self, exc: KafkaException) -> LogError:
        return LogError(
            f"Kafka at {self._servers} refused: {exc}; see K2_KAFKA_BOOTSTRAP_SERVERS and "
            "K2_KAFKA_SECURITY_PROTOCOL",
            servers=self._servers,
        )

    @property
    def _admin(self) -> Any:
        if self._client is None:
            self._client = AdminClient(
                {
                    "bootstrap.servers": self._servers,
                    "socket.timeout.ms": int(self._kafka.request_timeout_s * 1000),
                    **librdkafka_options(self._kafka),
                },
                logger=_NoticeLogger(),
            )
        return self._client

    @property
    def _timeout(self) -> dict[str, float]:
        return {"request_timeout": self._kafka.request_timeout_s}

    def _ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        found = self._partition_counts([spec.name for spec in specs])
        missing = [spec for spec in specs if found[spec.name] is None]
        if missing:
            self._create(missing)
            found.update(self._await_topics([spec.name for spec in missing]))
        for spec in specs:
            if found[spec.name] != spec.partitions:
                raise ConfigError(
                    f"topic {spec.name!r} has {found[spec.name]} partitions, not "
                    f"{spec.partitions}; partition counts never change, since keys would move. "
                    f"Set K2_KAFKA_PARTITIONS to {found[spec.name]}, or copy the topic into a new "
                    "one",
                    topic=spec.name,
                    partitions=found[spec.name],
                    wanted=spec.partitions,
                )

    def _create(self, specs: Sequence[TopicSpec]) -> None:
        made = self._admin.create_topics(
            [
                NewTopic(
                    spec.name,
                    num_partitions=spec.partitions,
                    replication_factor=self._kafka.replication,
                    config=topic_config(spec, self._kafka),
                )
                for spec in specs
            ],
            **self._timeout,
        )
        for name, future in made.items():
            try:
                future.result()
            except KafkaException as exc:
                # Another worker starting at the same time may have been first.
                if exc.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
            else:
                log.info("topic created", topic=name)

    def _await_topics(self, names: Sequence[str]) -> dict[str, int | None]:
        deadline = time.monotonic() + self._kafka.request_timeout_s
        while True:
            found = self._partition_counts(names)
            if None not in found.values() or time.monotonic() > deadline:
                return found
            time.sleep(_SETTLE_S)  # in a thread of its own

    def _partition_counts(self, topics: Collection[str]) -> dict[str, int | None]:
        return {
            name: None if found is None else len(found.partitions)
            for name, found in self._describe(topics).items()
        }

    def _describe(self, topics: Collection[str]) -> dict[str, Any]:
        if not topics:
            return {}
        asked = self._admin.describe_topics(TopicCollection(list(topics)), **self._timeout)
        found: dict[str, Any] = {}
        for name, future in asked.items():
            try:
                found[name] = future.result()
            except KafkaException as exc:
                if exc.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise
                found[name] = None
        return found

    def _epochs(self, topics: Collection[str]) -> dict[str, str]:
        epochs: dict[str, str] = {}
        for name, found in self._describe(topics).items():
            if found is None:
                raise _missing(name)
            topic_id = found.topic_id
            high = topic_id.get_most_significant_bits() & (2**64 - 1)
            low = topic_id.get_least_significant_bits() & (2**64 - 1)
            epochs[name] = str(uuid.UUID(int=high << 64 | low))
        return epochs

    def _bounds(self, tps: Collection[TP]) -> dict[TP, tuple[int, int]]:
        earliest = self._offsets(tps, OffsetSpec.earliest())
        ends = self._offsets(tps, OffsetSpec.latest())
        return {tp: (earliest[tp], ends[tp]) for tp in tps}

    def _offsets(self, tps: Collection[TP], spec: Any) -> dict[TP, int]:
        asked = self._admin.list_offsets(
            {TopicPartition(tp.topic, tp.partition): spec for tp in tps}, **self._timeout
        )
        offsets: dict[TP, int] = {}
        for place, future in asked.items():
            try:
                offsets[TP(place.topic, place.partition)] = future.result().offset
            except KafkaException as exc:
                if exc.args[0].code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._NOENT):
                    raise _missing(f"{place.topic}[{place.partition}]") from exc
                raise
        return offsets


def _missing(name: str) -> LogError:
    return LogError(
        f"topic {name!r} does not exist; `k2 up` and the worker create K2's topics at start",
        topic=name,
    )


class _NoticeLogger:
    """librdkafka's own lines, in our log instead of on standard error."""

    def log(self, level: int, message: str, *args: Any) -> None:
        log.log(level, "librdkafka", line=message % args if args else message)
