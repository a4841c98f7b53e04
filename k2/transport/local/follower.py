"""Positions in several partitions, reads from them, and a wake-up when one of them grows."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Final

from faust.types import TP

from k2.errors import LogError
from k2.transport.local.partition import PartitionLog
from k2.transport.local.segment import Chunk

#: Bytes read from one partition at a time, and in one go from all that are far behind.
PARTITION_BYTES: Final = 1 << 20
_TOTAL_BYTES: Final = 8 << 20
#: Up to this many records behind the end a read is far below a millisecond: no thread.
_NEAR: Final = 256


class Follower:
    """Reads partitions for one consumer or reader, within one event loop.

    Positions are the owner's to move; reading does not move them.
    """

    def __init__(self) -> None:
        self.positions: dict[TP, int] = {}
        self._logs: dict[TP, PartitionLog] = {}
        self._stops: list[Callable[[], None]] = []
        self._grown = asyncio.Event()
        self._interrupted = False
        self._turn = 0

    def follow(self, logs: Mapping[TP, PartitionLog], positions: Mapping[TP, int]) -> None:
        """Follow these partitions and no others. Call it in the event loop that waits."""
        self.close()
        loop, thread = asyncio.get_running_loop(), threading.get_ident()

        def grown() -> None:
            if threading.get_ident() == thread:
                self._grown.set()
            elif not loop.is_closed():
                loop.call_soon_threadsafe(self._grown.set)

        self._logs = dict(logs)
        self.positions = dict(positions)
        self._stops = [log.listen(grown) for log in self._logs.values()]

    def close(self) -> None:
        """Follow nothing."""
        for stop in self._stops:
            stop()
        self._stops, self._logs, self.positions = [], {}, {}

    def log(self, tp: TP) -> PartitionLog:
        """Raises `LogError` for a partition that is not followed."""
        try:
            return self._logs[tp]
        except KeyError:
            raise LogError(
                f"{tp.topic}[{tp.partition}] is not assigned",
                topic=tp.topic,
                partition=tp.partition,
            ) from None

    def wake(self) -> None:
        """Make the `wait` under way, if any, return."""
        self._interrupted = True
        self._grown.set()

    async def wait(self, tps: Collection[TP], timeout_s: float) -> list[TP]:
        """Those of `tps` with something to read; empty on `wake` or after `timeout_s`."""
        self._interrupted = False
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while True:
            self._grown.clear()
            found = self._ready(tps)
            if found or self._interrupted or timeout_s <= 0:
                return found
            try:
                async with asyncio.timeout_at(deadline_s):
                    await self._grown.wait()
            except TimeoutError:
                return []

    def _ready(self, tps: Collection[TP]) -> list[TP]:
        logs, positions = self._logs, self.positions
        behind = {tp: logs[tp].end_offset - positions[tp] for tp in tps if tp in logs}
        found = [tp for tp, records in behind.items() if records > 0]
        far = [tp for tp in found if behind[tp] > _NEAR]
        most = _TOTAL_BYTES // PARTITION_BYTES
        if len(far) > most:
            # A bounded read serves them in turn; what is near the end takes little room.
            far.sort()
            self._turn = (self._turn + most) % len(far)
            left_out = set((far[self._turn :] + far[: self._turn])[most:])
            found = [tp for tp in found if tp not in left_out]
        return found

    async def read(self, limits: Mapping[TP, int]) -> dict[TP, Chunk]:
        """Chunks from the positions on, of at most so many bytes per partition.

        Raises `RetentionGapError`, `LogCorruptError`. What is not at hand in memory is read in a
        thread.
        """
        jobs = {tp: (self.log(tp), self.positions[tp], size) for tp, size in limits.items()}
        if all(log.is_near(position, _NEAR) for log, position, _ in jobs.values()):
            return _read_all(jobs)
        return await asyncio.to_thread(_read_all, jobs)


def _read_all(jobs: Mapping[TP, tuple[PartitionLog, int, int]]) -> dict[TP, Chunk]:
    chunks = {tp: log.read(position, size) for tp, (log, position, size) in jobs.items()}
    return {tp: chunk for tp, chunk in chunks.items() if chunk is not None}
