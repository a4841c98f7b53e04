"""Degradation agent: the owner of the control partition sets the level for all."""

from __future__ import annotations

from typing import Any


def attach(app: Any, topic: Any, worker: Any) -> None:
    """Reports in, level into the global table."""

    async def control(stream: Any) -> None:
        async for report in stream:
            change = worker.control.judge(report)
            if change is not None:
                await worker.control.announce(change)

    app.agent(topic, name="k2.degradation", concurrency=1)(control)
