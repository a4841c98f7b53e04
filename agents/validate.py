"""Validate agent: logs of record in, validated records, dead letters and gaps out."""

from __future__ import annotations

from typing import Any


def attach(app: Any, topics: list[Any], worker: Any) -> None:
    """One agent per log of record, one stream each: order within a partition is the log's."""
    for topic in topics:

        async def validate(stream: Any) -> None:
            async for event in stream.noack().events():
                worker.check()
                await worker.validate.process(event.value, event)

        app.agent(
            topic,
            name=f"k2.validate.{topic.get_topic_name()}",
            concurrency=1,
        )(validate)
