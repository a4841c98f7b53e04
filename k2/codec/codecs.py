"""The codec of every topic: its schema registered before the first produce."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Self

from k2.codec.avro import Codec
from k2.codec.http_registry import HttpRegistry
from k2.codec.registry import FileRegistry, SchemaRegistry
from k2.codec.schemas import kind_of, schema_text, subject_of
from k2.errors import SchemaError
from k2.topics import MARKET_TOPICS, MarketTopic


def open_registry(url: str, data_dir: Path) -> SchemaRegistry:
    """The registry at `url`, or the one in the data directory when `url` is empty."""
    return HttpRegistry(url) if url else FileRegistry(data_dir / "schemas")


class Codecs:
    """Codecs by topic name. Build with `open`, which blocks on the registry: use a thread."""

    def __init__(self, by_topic: dict[str, Codec], by_subject: dict[str, Codec]) -> None:
        self._by_topic = by_topic
        self.by_subject = by_subject

    @classmethod
    def open(cls, registry: SchemaRegistry, topics: Iterable[MarketTopic] = MARKET_TOPICS) -> Self:
        """Register the schemas of the topics and all derived from them. Raises `SchemaError`."""
        by_topic: dict[str, Codec] = {}
        by_subject: dict[str, Codec] = {}
        for name in (name for topic in topics for name in topic.all_names):
            subject = subject_of(name)
            if subject not in by_subject:
                by_subject[subject] = Codec.open(registry, subject, schema_text(kind_of(name)))
            by_topic[name] = by_subject[subject]
        return cls(by_topic, by_subject)

    def of(self, topic: str) -> Codec:
        """The codec of a topic's values. Raises `SchemaError` for a topic not opened."""
        if topic not in self._by_topic:
            raise SchemaError(
                f"no codec was opened for topic {topic!r}; known: {', '.join(self._by_topic)}",
                topic=topic,
            )
        return self._by_topic[topic]
