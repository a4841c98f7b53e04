"""The codec of every topic, its schema registered before the first record is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import pyarrow as pa

from k2.breakers import Breaker
from k2.codec.avro import Codec
from k2.codec.evolution import added_fields
from k2.codec.guarded import GuardedRegistry
from k2.codec.http_registry import HttpRegistry
from k2.codec.registry import FileRegistry, SchemaRegistry
from k2.codec.schemas import kind_of, schema_text, subject_of
from k2.settings import Settings
from k2.steps.row_cache import RowCache
from k2.steps.rows import CandleRows, RowReader
from k2.topics import MarketTopic


def open_registry(settings: Settings, breaker: Breaker | None = None) -> SchemaRegistry:
    """The configured registry, behind `breaker` if given; else one in the data directory."""
    kafka = settings.kafka
    if not kafka.schema_registry_url:
        return FileRegistry(settings.core.data_dir / "registry")
    user, password = kafka.schema_registry_username, kafka.schema_registry_password
    registry = HttpRegistry(
        kafka.schema_registry_url,
        login=(user, password.get_secret_value()) if user else None,
        ca_file=kafka.schema_registry_ca_file,
    )
    return GuardedRegistry(registry, breaker) if breaker else registry


@dataclass(frozen=True, slots=True)
class Codecs:
    """One codec per registry subject."""

    by_subject: dict[str, Codec]
    #: Of subjects whose newest schema has fields beyond K2's: what the sink reads with.
    grown: dict[str, Codec] = field(default_factory=dict)
    rows: RowCache = field(default_factory=RowCache)

    @classmethod
    def open(cls, registry: SchemaRegistry, topics: Sequence[MarketTopic]) -> Self:
        """Register the schemas of `topics` and what is derived from them; blocking.

        Raises `SchemaIncompatibleError` with the registry's reason.
        """
        found: dict[str, Codec] = {}
        grown: dict[str, Codec] = {}
        for topic in topics:
            for name in topic.all_names:
                subject = subject_of(name)
                if subject not in found:
                    own = schema_text(kind_of(name))
                    found[subject] = Codec.open(registry, subject, own)
                    latest = registry.latest(subject)
                    if added_fields(latest.schema, own):
                        grown[subject] = Codec(registry, latest.schema, latest.schema_id)
        return cls(found, grown)

    def of(self, topic: str) -> Codec:
        """The codec of a topic's values."""
        return self.by_subject[subject_of(topic)]

    def reader(self, topic: str, added: Sequence[pa.Field] = ()) -> RowReader:
        """Turns batches of a topic into rows of its table (`kind_of(topic)`).

        `added`: columns the table has beyond K2's, filled from fields the schema has beyond K2's.
        """
        codec = self.of(topic)
        if added:
            codec = self.grown.get(subject_of(topic), codec)
        return RowReader(kind_of(topic), codec, self.rows, added)

    def candle_reader(self, topic: str) -> CandleRows:
        """Turns batches of a topic of trades into what candles are folded from."""
        return CandleRows(kind_of(topic), self.of(topic), self.rows)
