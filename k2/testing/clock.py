"""A clock that only moves when told, so that no test sleeps."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count

#: Turns of the event loop after which everything that can run without I/O has run.
_TURNS = 20


class ManualClock:
    """`advance` moves wall and monotonic time together and wakes sleepers in order."""

    def __init__(self, start_us: int = 1_723_161_253_000_000) -> None:
        self._start_us = start_us
        self._now_s = 0.0
        self._order = count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now_us(self) -> int:
        return self._start_us + round(self._now_s * 1_000_000)

    def monotonic_s(self) -> float:
        return self._now_s

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now_s + seconds, next(self._order), woken))
        await woken

    async def advance(self, seconds: float) -> None:
        """Move on, letting whoever wakes act at its own time."""
        await turns()  # who is about to sleep must be asleep before time moves
        target_s = self._now_s + seconds
        while self._sleepers and self._sleepers[0][0] <= target_s:
            self._now_s, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                woken.set_result(None)
            await turns()
        self._now_s = target_s
        await turns()


async def turns() -> None:
    """Let every task run as far as it can without I/O."""
    for _ in range(_TURNS):
        await asyncio.sleep(0)


async def eventually(condition: Callable[[], object], limit_s: float = 10.0) -> None:
    """Return once `condition()` is true. Raises `TimeoutError` after `limit_s` of real time."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - what is awaited sets no event
            await asyncio.sleep(0)
