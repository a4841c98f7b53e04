"""Where consumers start: state's own checkpoint instead of Kafka's committed offset."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field

from faust.types import TP

from k2.errors import ConfigError, LogError, RetentionGapError

#: Asked after table recovery for the partitions assigned; a partition absent from the answer
#: starts at the topic's earliest offset.
Resolver = Callable[[frozenset[TP]], Awaitable[Mapping[TP, int]]]
#: The highest offset that may be committed for a partition; None: nothing yet.
CommitCeiling = Callable[[TP], int | None]


@dataclass(slots=True)
class StartPositions:
    """Topics whose consumers keep their own position, and how to ask for it."""

    _resolvers: dict[str, Resolver] = field(default_factory=dict)
    _ceilings: dict[str, CommitCeiling] = field(default_factory=dict)

    def register(
        self, topic: str, resolver: Resolver, *, commit_ceiling: CommitCeiling | None = None
    ) -> None:
        """Start `topic` where `resolver` says.

        `commit_ceiling` keeps the offset committed to the log from passing the checkpoint.
        Raises `ConfigError` when the topic has a resolver already: two states cannot both decide.
        """
        if topic in self._resolvers:
            raise ConfigError(
                f"topic {topic!r} has a start-position resolver already; one state decides where "
                "its consumer starts",
                topic=topic,
            )
        self._resolvers[topic] = resolver
        if commit_ceiling is not None:
            self._ceilings[topic] = commit_ceiling

    def __contains__(self, topic: str) -> bool:
        return topic in self._resolvers

    def ceiling(self, tp: TP, offset: int) -> int | None:
        """`offset`, lowered to the topic's commit ceiling if it has one."""
        ceiling = self._ceilings.get(tp.topic)
        if ceiling is None:
            return offset
        limit = ceiling(tp)
        return None if limit is None else min(limit, offset)

    async def resolve(self, tps: Collection[TP]) -> dict[TP, int]:
        """Positions of those of `tps` whose topic is registered; absent means earliest."""
        by_topic: dict[str, set[TP]] = {}
        for tp in tps:
            if tp.topic in self._resolvers:
                by_topic.setdefault(tp.topic, set()).add(tp)
        positions: dict[TP, int] = {}
        for topic, wanted in by_topic.items():
            answer = await self._resolvers[topic](frozenset(wanted))
            positions.update({tp: answer[tp] for tp in wanted if tp in answer})
        return positions


def check_position(tp: TP, position: int, earliest: int, end: int) -> None:
    """Refuse a position the log cannot serve: reading on from elsewhere would lose records.

    Raises `RetentionGapError` below `earliest` and `LogError` beyond `end`.
    """
    place = f"{tp.topic}[{tp.partition}]"
    if position < earliest:
        raise RetentionGapError(
            f"{place} must resume at offset {position}, but its earliest offset is {earliest}: "
            f"{earliest - position} offsets were deleted by retention before they were read; "
            "restore them, or accept the loss by moving the stored position to the earliest offset",
            topic=tp.topic,
            partition=tp.partition,
            position=position,
            earliest=earliest,
        )
    if position > end:
        raise LogError(
            f"{place} must resume at offset {position}, but the log ends at {end}: it was "
            "truncated or made anew under the same name; start from the positions of this log's "
            "own epoch",
            topic=tp.topic,
            partition=tp.partition,
            position=position,
            end=end,
        )
