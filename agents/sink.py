"""Sink agent: validated records and gap events into the lake."""

from __future__ import annotations

from typing import Any


def attach(app: Any, topics: list[Any], worker: Any) -> None:
    """One agent per topic, one stream each; the step acks an event once its rows are held."""
    for topic in topics:

        async def sink(stream: Any) -> None:
            async for event in stream.noack().events():
                worker.check()
                await worker.sink.add(event.value, event)

        app.agent(
            topic,
            name=f"k2.sink.{topic.get_topic_name()}",
            concurrency=1,
        )(sink)
