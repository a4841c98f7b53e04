"""Recording: the frames of an exchange's sessions into files, nothing mapped, nothing left out.

Guarantee: frames of a session are in its files in the order they came, each once; while the disk
is slower than the exchange the socket waits. What the exchange sent while no connection was open is
missing, and a line of the file says where. A killed recorder loses at most `FLUSH_S` of frames.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

import structlog

from k2.clock import SYSTEM_CLOCK, Clock
from k2.sources.capture_file import CaptureFile, Rotation, Written
from k2.sources.session import Session

log = structlog.get_logger(__name__)

FLUSH_S: Final = 1.0
_FRAMES: Final = 5_000


class Recorder:
    """The sessions of one exchange, each into files of its own."""

    def __init__(
        self,
        sessions: list[Session],
        out: Path,
        rotation: Rotation,
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._sessions = [
            (session, CaptureFile(out, session.name, rotation)) for session in sessions
        ]
        self._clock = clock

    def written(self) -> list[tuple[Session, Written]]:
        """What each session brought so far."""
        return [(session, file.written) for session, file in self._sessions]

    async def run(self, stop: asyncio.Event) -> None:
        """Record until `stop` is set; what was received by then is on disk when this returns.

        Raises `ConfigError` when the disk takes no more.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                for session, file in self._sessions:
                    tasks.create_task(session.run())
                    tasks.create_task(self._take(session, file))
                await stop.wait()
                for session, _ in self._sessions:
                    tasks.create_task(session.close())
        except ExceptionGroup as group:
            raise group.exceptions[0] from group

    async def _take(self, session: Session, file: CaptureFile) -> None:
        lock, run = asyncio.Lock(), -1
        flushing = asyncio.create_task(self._flush_often(file, lock))
        try:
            while not flushing.done() and (frames := await session.batch(_FRAMES)):
                async with lock:
                    if session.run_number != run:
                        run = session.run_number
                        file.note("connected", frames[0][0], session.stats.url)
                    for refused in session.take_refused():
                        # The only frames that are not whole: beyond what one connection may hold.
                        log.warning("frame_too_large", session=session.name, detail=refused.detail)
                        file.note("refused", refused.recv_us, refused.detail)
                    await asyncio.to_thread(file.add, frames)
        finally:
            flushing.cancel()
            (failed,) = await asyncio.gather(flushing, return_exceptions=True)
            await asyncio.to_thread(file.close)
        if isinstance(failed, Exception):
            raise failed

    async def _flush_often(self, file: CaptureFile, lock: asyncio.Lock) -> None:
        while True:
            await self._clock.sleep(FLUSH_S)
            async with lock:
                await asyncio.to_thread(file.flush)


def facts(recorder: Recorder) -> dict[str, Any]:
    """What was recorded, for people and JSON."""
    sessions = [
        {
            "session": session.name,
            "state": session.stats.state,
            "frames": written.frames,
            "other": written.other,
            "bytes": written.bytes,
            "reconnects": dict(session.stats.reconnects),
            "last_error": session.stats.last_error,
            "files": [str(path) for path in written.files],
        }
        for session, written in recorder.written()
    ]
    return {
        "frames": sum(written.frames for _, written in recorder.written()),
        "other": sum(written.other for _, written in recorder.written()),
        "bytes": sum(written.bytes for _, written in recorder.written()),
        "sessions": sessions,
    }
