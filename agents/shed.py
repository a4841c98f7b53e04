"""Shed agent: notes what validated groups say was put off, so that it can be brought later."""

from __future__ import annotations

from typing import Any


def attach(app: Any, topics: list[Any], worker: Any) -> None:
    """One agent per validated topic; it reads headers only."""
    for topic in topics:

        async def shed(stream: Any) -> None:
            async for event in stream.noack().events():
                worker.check()
                await worker.shed.note(event.value)
                event.ack()

        app.agent(topic, name=f"k2.shed.{topic.get_topic_name()}", concurrency=1)(shed)
