"""What was received and not yet taken, bounded in frames and bytes."""

from __future__ import annotations

import asyncio

#: (receive time in microseconds UTC, the frame's bytes)
Received = tuple[int, bytes]

#: Bound in bytes, whatever the bound in frames: large frames must not fill the memory.
MAX_BYTES = 64 * 1024 * 1024


class FrameBuffer:
    """One reader waits for room instead of dropping; one taker gets whole batches."""

    def __init__(self, max_frames: int, max_bytes: int = MAX_BYTES) -> None:
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self._frames: list[Received] = []
        self._bytes = 0
        self._closed = False
        self._ready = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, frame: Received) -> bool:
        """Keep `frame`; False when it was the last there is room for: await `room()` then."""
        self._frames.append(frame)
        self._bytes += len(frame[1])
        self._ready.set()
        if len(self._frames) < self._max_frames and self._bytes < self._max_bytes:
            return True
        self._room.clear()
        return False

    async def room(self) -> None:
        """Return when frames fit again."""
        await self._room.wait()

    async def take(self, max_frames: int) -> list[Received]:
        """Up to `max_frames`, oldest first; waits for the first. Empty once closed and drained."""
        while not self._frames:
            if self._closed:
                return []
            self._ready.clear()
            await self._ready.wait()
        taken, self._frames = self._frames[:max_frames], self._frames[max_frames:]
        self._bytes -= sum(len(data) for _, data in taken)
        if len(self._frames) < self._max_frames and self._bytes < self._max_bytes:
            self._room.set()
        return taken

    def close(self) -> None:
        """No more frames come; what is here can still be taken."""
        self._closed = True
        self._ready.set()
        self._room.set()
