"""Candles agent: validated trades folded into candles of the lake."""

from __future__ import annotations

from typing import Any


def attach(app: Any, topics: list[Any], worker: Any) -> None:
    """One agent per topic of trades, beside the sink's: both get the same batch, decoded once."""
    for topic in topics:

        async def candles(stream: Any) -> None:
            async for event in stream.noack().events():
                worker.check()
                await worker.candles.add(event.value, event)

        app.agent(
            topic,
            name=f"k2.candles.{topic.get_topic_name()}",
            concurrency=1,
        )(candles)
