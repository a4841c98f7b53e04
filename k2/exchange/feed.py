"""Where the exchange server's frames come from, and when each is due."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol

from k2.clock import Clock
from k2.exchange.capture import Frame, check_capture, read_capture, symbols_of

#: Frames handed over at a time: bounds both the size of a write and how long the loop is held.
CHUNK = 256

#: Shorter waits are not worth a wake-up; what falls due meanwhile goes out together.
_LEAST_SLEEP_S = 0.001


class Feed(Protocol):
    """A source of frames that can be played from its start any number of times."""

    def segments(self) -> Iterator[Iterator[Frame]]:
        """Runs of frames on one clock; each run begins as soon as the one before ends."""

    def symbols(self) -> tuple[str, ...]:
        """The symbols traded here, upper case. May read the whole feed: call it in a thread."""


class CaptureFeed:
    """Recorded captures, one after the other in the order given.

    Raises `CaptureError` at once when one cannot be opened.
    """

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self.paths = paths
        for path in paths:
            check_capture(path)

    def segments(self) -> Iterator[Iterator[Frame]]:
        return map(read_capture, self.paths)

    def symbols(self) -> tuple[str, ...]:
        return symbols_of(frame for segment in self.segments() for frame in segment)


class Playback:
    """One run through a feed at `speed` times real time (None: as fast as it is taken)."""

    def __init__(self, feed: Feed, speed: float | None, clock: Clock) -> None:
        self._segments = feed.segments()
        self._segment: Iterator[Frame] = iter(())
        self._speed = speed
        self._clock = clock
        self._began_s = 0.0
        self._first_ns: int | None = None
        self._ahead: Frame | None = None

    async def next(self) -> list[Frame]:
        """The frames that are due, up to `CHUNK`; waits for the first. Empty at the end.

        Raises `CaptureError` at a damaged place.
        """
        if self._speed is None:
            return self._next_chunk()
        first = self._take()
        if first is None:
            return []
        wait_s = self._due_s(first) - self._clock.monotonic_s()
        if wait_s > 0:
            await self._clock.sleep(max(wait_s, _LEAST_SLEEP_S))
        return self._all_due(first)

    def _next_chunk(self) -> list[Frame]:
        while not (chunk := list(islice(self._segment, CHUNK))):
            segment = next(self._segments, None)
            if segment is None:
                return []
            self._segment = segment
        return chunk

    def _all_due(self, first: Frame) -> list[Frame]:
        assert self._speed is not None
        assert self._first_ns is not None
        passed_s = self._clock.monotonic_s() - self._began_s
        until_ns = self._first_ns + int(passed_s * self._speed * 1e9)
        due = [first]
        # What is of another segment has a clock of its own: the next call asks for it.
        for frame in self._segment:
            if frame.recv_ns > until_ns or len(due) == CHUNK:
                self._ahead = frame
                break
            due.append(frame)
        return due

    def _take(self) -> Frame | None:
        frame, self._ahead = self._ahead, None
        while frame is None and (frame := next(self._segment, None)) is None:
            segment = next(self._segments, None)
            if segment is None:
                return None
            self._segment, self._first_ns = segment, None
        return frame

    def _due_s(self, frame: Frame) -> float:
        assert self._speed is not None
        if self._first_ns is None:
            self._first_ns, self._began_s = frame.recv_ns, self._clock.monotonic_s()
        return self._began_s + (frame.recv_ns - self._first_ns) / 1e9 / self._speed
