"""The vector: how far the lake is, stored in the snapshot that says so.

Per (log epoch, log topic, partition): the offset of the *read* topic (`.validated`, `.gaps`, …) to
resume from and the highest platform_sequence stored. It lives in the snapshot summary under one
key as JSON, so that time travel and rollback move it with the data.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

import msgspec

SUMMARY_KEY = "k2.vector"
COMMIT_ID_KEY = "k2.commit-id"


class Place(NamedTuple):
    """One partition of one incarnation of a topic the sink reads (e.g. `….validated`)."""

    epoch: str
    topic: str
    partition: int


class Position(NamedTuple):
    """`next_offset`: where to resume in the topic; `sequence`: highest platform_sequence stored."""

    next_offset: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Vector:
    """An immutable map from place to position."""

    entries: Mapping[Place, Position]

    @classmethod
    def empty(cls) -> Self:
        return cls({})

    @classmethod
    def from_summary(cls, text: str) -> Self:
        """Parse the summary's JSON: {epoch: {topic: {partition: [next_offset, sequence]}}}."""
        tree = msgspec.json.decode(text, type=dict[str, dict[str, dict[str, tuple[int, int]]]])
        return cls(
            {
                Place(epoch, topic, int(partition)): Position(*position)
                for epoch, topics in tree.items()
                for topic, partitions in topics.items()
                for partition, position in partitions.items()
            }
        )

    def to_summary(self) -> str:
        """The JSON text of the summary; keys sorted, so equal vectors are equal texts."""
        tree: dict[str, dict[str, dict[str, list[int]]]] = {}
        for place, position in sorted(self.entries.items()):
            topics = tree.setdefault(place.epoch, {})
            topics.setdefault(place.topic, {})[str(place.partition)] = list(position)
        return msgspec.json.encode(tree).decode()

    def get(self, place: Place) -> Position | None:
        return self.entries.get(place)

    def advanced(self, positions: Mapping[Place, Position]) -> Vector:
        """This vector with `positions` put over it."""
        return Vector({**self.entries, **positions})

    def of(self, partitions: Collection[int]) -> Vector:
        """Only the places of these partitions, whatever their topic and epoch."""
        return Vector({p: at for p, at in self.entries.items() if p.partition in partitions})
