"""Answers made on the event loop itself, a few at a time.

Each takes a millisecond or less; a hundred that come at once would hold up everybody else, the
pipeline included, for all of theirs together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

#: What they may take of one turn of the loop. Less, and answers wait for the pipeline instead.
_MOST_S: Final = 0.01


class Turns:
    """Use as a context, around work that does not wait for anything."""

    def __init__(self, clock_s: Callable[[], float] = time.perf_counter) -> None:
        self._clock_s = clock_s
        self._spent_s = self._began_s = 0.0
        self._noted = False

    async def __aenter__(self) -> None:
        while self._spent_s >= _MOST_S:  # noqa: ASYNC110 - every turn of the loop is awaited
            await asyncio.sleep(0)
        if not self._noted:
            self._noted = True
            asyncio.get_running_loop().call_soon(self._next)
        self._began_s = self._clock_s()

    async def __aexit__(self, *_: object) -> None:
        self._spent_s += self._clock_s() - self._began_s

    def _next(self) -> None:
        """The loop has come round: everybody else has had a turn."""
        self._spent_s, self._noted = 0.0, False
