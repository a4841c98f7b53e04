"""What a topic is like, what it should be like, and the difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from k2.settings import Kafka
from k2.transport.admin import TopicSpec

#: The settings that decide what a topic keeps and in which form; others are the cluster's own.
COMPARED: Final = ("cleanup.policy", "retention.ms", "compression.type", "max.message.bytes")


def topic_config(spec: TopicSpec, kafka: Kafka) -> dict[str, str]:
    """Kafka's settings of a topic made for `spec`."""
    return {
        "cleanup.policy": "compact" if spec.compacted else "delete",
        "retention.ms": "-1" if spec.retention_s is None else str(int(spec.retention_s * 1000)),
        "max.message.bytes": str(kafka.max_message_bytes),
        # As written, which is K2_KAFKA_COMPRESSION: recompressing would cost the broker and tear
        # K2's batches apart.
        "compression.type": "producer",
        "message.timestamp.type": "CreateTime",
        **spec.config,
    }


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic as it is. `config`: the values in force, by Kafka's names."""

    partitions: int
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in which a topic is not as specified. `found` None: the topic is missing."""

    topic: str
    what: str
    wanted: str
    found: str | None

    @property
    def repairable(self) -> bool:
        """False for partitions: with another count, keys would move."""
        return self.what != "partitions"


def differences(spec: TopicSpec, found: TopicState | None, kafka: Kafka) -> list[Difference]:
    """In what `found` differs from `spec`; a missing topic is one difference."""
    if found is None:
        return [Difference(spec.name, "topic", f"{spec.partitions} partitions", None)]
    wanted = {"partitions": str(spec.partitions)}
    config = topic_config(spec, kafka)
    wanted |= {name: config[name] for name in COMPARED}
    actual = {"partitions": str(found.partitions), **found.config}
    return [
        Difference(spec.name, name, value, actual.get(name, ""))
        for name, value in wanted.items()
        if actual.get(name, "") != value
    ]
