"""Maintenance agent: its topic is empty; owning its one partition elects the worker."""

from __future__ import annotations

from typing import Any


def attach(app: Any, topic: Any) -> None:
    """Subscribe; `MaintainStep` asks whether the partition is this worker's."""

    async def elected(stream: Any) -> None:
        async for _ in stream:
            continue

    app.agent(topic, name="k2.maintenance", concurrency=1)(elected)
