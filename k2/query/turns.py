"""Answers made on the event loop itself, one at a time.

Each takes a millisecond or less; a hundred that come at once would hold up everybody else, the
pipeline included, for all of theirs together.
"""

from __future__ import annotations

import asyncio


class Turns:
    """Use as a context: between two such pieces of work everybody else on the loop has a turn."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> None:
        await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        try:
            await asyncio.sleep(0)
        finally:
            self._lock.release()
