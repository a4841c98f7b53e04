"""Playback: pace, segments, and no pace at all."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from k2.errors import CaptureError
from k2.exchange.capture import Frame
from k2.exchange.feed import CHUNK, CaptureFeed, Playback
from k2.testing.clock import ManualClock, turns
from tests.exchange.feeds import ListFeed, trade


async def collect(playback: Playback, into: list[Frame]) -> None:
    while frames := await playback.next():
        into.extend(frames)


@pytest.mark.parametrize("speed", [1.0, 4.0])
async def test_frames_are_due_at_their_distance_over_the_speed(speed: float) -> None:
    clock, got = ManualClock(), []
    feed = ListFeed([trade(n, at_ms=n * 1_000) for n in range(9)])
    task = asyncio.create_task(collect(Playback(feed, speed, clock), got))
    await turns()
    assert len(got) == 1
    await clock.advance(1.0)
    assert len(got) == 1 + speed
    await clock.advance(8.0)
    await task
    assert len(got) == 9


async def test_the_next_capture_begins_when_the_one_before_ends() -> None:
    clock, got = ManualClock(), []
    day_ms = 86_400_000
    feed = ListFeed([trade(2, at_ms=day_ms), trade(3, at_ms=day_ms + 10)], [trade(1)])
    task = asyncio.create_task(collect(Playback(feed, 1.0, clock), got))
    await clock.advance(0.011)
    await task
    assert got == [trade(2, at_ms=day_ms), trade(3, at_ms=day_ms + 10), trade(1)]


async def test_at_full_speed_nothing_waits() -> None:
    frames = [trade(n, at_ms=n * 1_000_000) for n in range(CHUNK * 2 + 5)]
    got: list[Frame] = []
    await collect(Playback(ListFeed(frames[:7], frames[7:]), None, ManualClock()), got)
    assert got == frames


async def test_a_clock_that_falls_back_does_not_stall_the_replay() -> None:
    clock, got = ManualClock(), []
    feed = ListFeed([trade(1, at_ms=500), trade(2, at_ms=0), trade(3, at_ms=600)])
    task = asyncio.create_task(collect(Playback(feed, 1.0, clock), got))
    await clock.advance(0.1)
    await task
    assert len(got) == 3


def test_a_capture_that_cannot_be_opened_is_found_at_once(tmp_path: Path) -> None:
    with pytest.raises(CaptureError):
        CaptureFeed((tmp_path / "missing",))
