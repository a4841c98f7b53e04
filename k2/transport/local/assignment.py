"""A cluster of one: all partitions to this worker, through Faust's own assignor.

The assignor is asked although the answer is known, because tables, the router and standbys read
its state afterwards.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from faust.types import TP

from k2.errors import LogError
from k2.transport.local.store import LogStore

_MEMBER = "k2"


class _Cluster:
    """What the assignor asks of Kafka's cluster metadata."""

    def __init__(self, store: LogStore) -> None:
        self._store = store

    def partitions_for_topic(self, topic: str) -> set[int]:
        return set(range(self._store.topic(topic).meta.partitions))


def assign_all(app: Any, store: LogStore, topics: Collection[str]) -> set[TP]:
    """Every partition of `topics`.

    Raises `LogError` for a topic that does not exist: Faust would drop it from the subscription
    with one log line, and its agent would wait for ever.
    """
    missing = sorted(set(topics) - store.topics().keys())
    if missing:
        raise LogError(
            f"topics {', '.join(missing)} are subscribed but do not exist in the embedded log "
            f"{store.directory}; create them before the worker starts (`LogAdmin.ensure_topics`)",
            topics=missing,
        )
    assignor = app.assignor
    metadata = assignor.metadata(set(topics))
    assignment = assignor.assign(_Cluster(store), {_MEMBER: metadata})[_MEMBER]
    assignor.on_assignment(assignment)
    return {
        TP(topic, partition)
        for topic, partitions in assignment.assignment
        for partition in partitions
    }
