"""Markets turned up and down, and what a soak tells of hours under one."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

from k2.cli.demo.tide import Tide
from k2.cli.soak import Plan, Sample, slope
from k2.cli.soak_proof import overlap
from k2.exchange.feed import Playback
from k2.testing.clock import ManualClock


async def k2(*arguments: str) -> tuple[int | None, list[str], str]:
    """A command of K2's: its status, the lines it printed, and what it said beside them."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "k2.cli", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode().splitlines(), err.decode()


@pytest.mark.heavy
@pytest.mark.timeout(400)
async def test_a_short_soak_tells_what_became_of_every_id() -> None:
    options = ("--hours", "0.01", "--rate", "500", "--every", "2", "--fault-every", "3")
    status, lines, told = await k2("soak", *options)
    assert status == 0, (lines, told)
    *samples, found = map(json.loads, lines)
    assert found["samples"] == len(samples) >= 5
    assert found["faults"] >= 3
    assert found["sound"]
    proof = found["proof"]
    assert proof["stored"] + proof["disclosed"] == proof["played"] > 0
    assert samples[-1]["duplicates"] > 0, "the exchange sent some twice"


async def test_a_tide_is_as_fast_as_it_was_last_told() -> None:
    clock = ManualClock()
    tide = Tide(("BTCUSDT", "ETHUSDT"), 100.0, 1, clock)
    playback = Playback(tide, 1.0, clock)
    playing = asyncio.create_task(_all(playback))
    await clock.advance(10)
    slow = len(playing.get_coro().cr_frame.f_locals["seen"])  # type: ignore[union-attr]
    assert slow == pytest.approx(1_000, rel=0.05)
    tide.rate = 2_000.0
    await clock.advance(1)
    fast = len(playing.get_coro().cr_frame.f_locals["seen"]) - slow  # type: ignore[union-attr]
    assert fast == pytest.approx(2_000, rel=0.1)
    tide.ebb()
    await clock.advance(1)
    assert await playing


async def _all(playback: Playback) -> list[object]:
    seen: list[object] = []
    while frames := await playback.next():
        seen += frames
    return seen


def sample(at_s: float, rss_mb: float) -> Sample:
    rest = dict.fromkeys(Sample.__dataclass_fields__, 0)
    return Sample(**{**rest, "at_s": at_s, "rss_mb": rss_mb})  # type: ignore[arg-type]


def test_a_slope_is_per_hour_and_after_the_warm_up() -> None:
    grown = [sample(60.0 * i, 900.0 - 50 * i if i < 10 else 400.0 + i) for i in range(60)]
    found = slope(grown, "rss_mb")
    assert found["per_hour"] == pytest.approx(60.0)
    assert found["interval"] == pytest.approx([60.0, 60.0], abs=0.01)
    assert slope(grown[:2], "rss_mb")["per_hour"] is None
    assert Plan(1, 1, 1, 1).seconds == 1


def test_ids_are_counted_by_range() -> None:
    assert overlap((5, 10), [(1, 5), (8, 20)]) == 4
    assert overlap((5, 10), []) == 0
