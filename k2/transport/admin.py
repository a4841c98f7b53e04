"""What K2 asks of a log besides reading and writing: topics, incarnations, bounds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from faust.types import TP


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as K2 wants it.

    - `partitions`: immutable once the topic exists.
    - `compacted`: keep the newest record of each key instead of deleting by age.
    - `retention_s`: seconds until a record may be deleted; None keeps records for ever.
    - `config`: further topic settings in Kafka's names; the embedded log ignores those it has no
      counterpart for.
    """

    name: str
    partitions: int
    compacted: bool = False
    retention_s: float | None = None
    config: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class LogAdmin(Protocol):
    """Topics of a log; implemented by the `Transport` of each driver.

    Usable before the app starts and while it runs, from its event loop.
    """

    async def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Create what is missing and check what exists.

        Raises `ConfigError` naming the topic when its partition count differs from the spec; a
        topic is never altered, since its keys would move to other partitions.
        """

    async def epochs(self, topics: Collection[str]) -> dict[str, str]:
        """The incarnation of each topic as UUID text. Raises `LogError` for a missing topic."""

    async def bounds(self, tps: Collection[TP]) -> dict[TP, tuple[int, int]]:
        """(earliest, end) offsets; `end` is the next offset to be written.

        Raises `LogError` for a missing topic or partition.
        """

    async def close(self) -> None:
        """Release connections: calls under way raise `LogError`, the next one opens them again."""
