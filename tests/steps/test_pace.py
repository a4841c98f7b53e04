"""How long frames wait for company: the busier the loop, the longer, and longer when asked."""

from __future__ import annotations

import pytest

from k2.steps.source import Pace
from k2.testing.clock import ManualClock


class Loop:
    """A loop that has worked so long, and whether somebody waits for an answer."""

    def __init__(self) -> None:
        self.worked_s, self.asked = 0.0, False
        self.clock = ManualClock()
        self.pace = Pace(self.clock, lambda: self.worked_s, lambda: self.asked)

    async def linger_s(self, passed_s: float, worked_s: float) -> float:
        """After a while of which the loop worked for a part."""
        await self.clock.advance(passed_s)
        self.worked_s += worked_s
        return self.pace.linger_s()


async def test_frames_wait_as_long_as_the_loop_is_busy() -> None:
    loop = Loop()
    idle = await loop.linger_s(1.0, 0.1)
    busy = await loop.linger_s(0.03, 0.02)
    assert idle < busy == pytest.approx(0.04)
    # It is what was done since the frames before that counts.
    assert await loop.linger_s(1.0, 0.1) == idle


async def test_no_frame_waits_for_ever() -> None:
    loop = Loop()
    longest = await loop.linger_s(10.0, 9.0)
    assert longest == await loop.linger_s(1.0, 0.9) < 0.1


async def test_while_somebody_waits_for_an_answer_frames_wait_longer() -> None:
    loop = Loop()
    usual = await loop.linger_s(0.03, 0.02)
    loop.asked = True
    assert await loop.linger_s(0.03, 0.02) == pytest.approx(2 * usual)
    assert await loop.linger_s(10.0, 9.0) < 0.2
    # A loop with nothing to do leaves the processor anyway.
    assert await loop.linger_s(1.0, 0.1) < usual
    loop.asked = False
    assert await loop.linger_s(0.03, 0.02) == pytest.approx(usual)
