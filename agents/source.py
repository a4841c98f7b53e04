"""Source agent: runs the exchange sessions whose partitions this worker owns."""

from __future__ import annotations

from typing import Any


def attach(app: Any, topic: Any, worker: Any) -> None:
    """Sessions follow the assignment of the sessions topic; its messages carry nothing."""
    name = topic.get_topic_name()

    async def sessions(stream: Any) -> None:
        async for _ in stream:
            pass  # being subscribed is what assigns the partitions

    app.agent(topic, name="k2.source", concurrency=1)(sessions)

    async def follow(_app: Any, assigned: set[Any], **_: Any) -> None:
        await worker.source.own({tp.partition for tp in assigned if tp.topic == name})

    app.on_partitions_assigned.connect(follow, weak=False)
