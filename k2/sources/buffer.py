"""What was received and not yet taken, bounded in frames and bytes."""

from __future__ import annotations

import asyncio
from collections import deque

#: (receive time in microseconds UTC, the frame's bytes)
Received = tuple[int, bytes]

#: Bound in bytes, whatever the bound in frames: large frames must not fill the memory.
MAX_BYTES = 64 * 1024 * 1024


class FrameBuffer:
    """One reader waits for room instead of dropping; one taker gets whole batches.

    Frames of two runs are never taken together: between them frames may be missing, and whoever
    reads on has to know. `run` is the number of the run that the last frames taken are of.
    """

    def __init__(self, max_frames: int, max_bytes: int = MAX_BYTES) -> None:
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self._frames: list[Received] = []
        #: Runs waiting behind `_frames`, each with its number.
        self._next: deque[tuple[int, list[Received]]] = deque()
        self._newest = self._frames
        self._runs = 0
        self._run = 0
        self.run = 0
        self._bytes = 0
        self._count = 0
        self._closed = False
        self._ready = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def __len__(self) -> int:
        return self._count

    def begin_run(self) -> None:
        """What is added from now on does not follow what was added before."""
        self._runs += 1
        self._newest = []
        self._next.append((self._runs, self._newest))
        self._move_on()

    def add(self, frame: Received) -> bool:
        """Keep `frame`; False when it was the last there is room for: await `room()` then."""
        self._newest.append(frame)
        self._count += 1
        self._bytes += len(frame[1])
        self._move_on()
        self._ready.set()
        if self._count < self._max_frames and self._bytes < self._max_bytes:
            return True
        self._room.clear()
        return False

    async def room(self) -> None:
        """Return when frames fit again."""
        await self._room.wait()

    async def take(self, max_frames: int) -> list[Received]:
        """Up to `max_frames` of one run, oldest first; waits for the first.

        Empty once closed and drained.
        """
        while not self._count:
            if self._closed:
                return []
            self._ready.clear()
            await self._ready.wait()
        taken = self._frames[:max_frames]
        del self._frames[:max_frames]
        self.run = self._run
        self._count -= len(taken)
        self._bytes -= sum(len(data) for _, data in taken)
        self._move_on()
        if self._count < self._max_frames and self._bytes < self._max_bytes:
            self._room.set()
        return taken

    def _move_on(self) -> None:
        while not self._frames and self._next:
            self._run, self._frames = self._next.popleft()

    def close(self) -> None:
        """No more frames come; what is here can still be taken."""
        self._closed = True
        self._ready.set()
        self._room.set()
