"""Back-fill leaves a history alone that answers nothing but errors."""

from __future__ import annotations

import datetime as dt

import aiohttp
import pytest

from k2.breaker import Limits, State
from k2.breakers import Breaker
from k2.errors import SourceError
from k2.pipeline.gap_report import Gap
from k2.pipeline.intervals import IntervalSet
from k2.pipeline.open_gaps import Feed
from k2.steps.backfill import BackfillStep
from k2.steps.source import SourceFeed
from k2.testing.clock import ManualClock
from tests.sources.cases import CASES
from tests.sources.test_html import website

CASE = CASES["binance"]


def gap(first: int) -> Gap:
    feed = Feed("BINANCE", "trades", "BTCUSDT")
    when = dt.datetime(2024, 8, 8, tzinfo=dt.UTC)
    return Gap(feed, when, first, first + 2, IntervalSet(((first, first + 1),)))


def step(place: str, breaker: Breaker, clock: ManualClock) -> BackfillStep:
    options = {"rest_url": f"http://{place}", "backfill": True, "symbols": ("BTCUSDT",)}
    settings = CASE.settings.model_copy(update=options)
    (spec,) = CASE.exchange.sessions(settings)
    running = [(SourceFeed(CASE.exchange, settings, {}, None), spec)]  # type: ignore[arg-type]

    async def gaps() -> list[Gap]:
        return [gap(first) for first in range(0, 100, 10)]

    async def time_below(*_: object) -> int:
        return 0

    return BackfillStep(lambda: running, gaps, clock, time_below, lambda _: breaker)


async def test_a_history_that_fails_again_and_again_is_left_alone() -> None:
    clock = ManualClock()
    breaker = Breaker("history_binance", Limits(), clock, SourceError)
    async with website(502) as place, aiohttp.ClientSession() as http:
        filling = step(place, breaker, clock)
        await filling.fill(http)
        assert breaker.state is State.OPEN
        assert filling.counts.requests == 5, "ten ranges were due"
        await filling.fill(http)
        assert filling.counts.requests == 5
        await clock.advance(60)
        await filling.fill(http)
    assert filling.counts.requests == 6, "one call tries whether it is back"
    assert breaker.state is State.OPEN


@pytest.mark.parametrize(("status", "blamed"), [(404, False), (429, True), (418, True)])
async def test_a_request_refused_for_itself_blames_nobody(status: int, blamed: bool) -> None:
    clock = ManualClock()
    breaker = Breaker("history_binance", Limits(failures=1), clock, SourceError)
    async with website(status) as place, aiohttp.ClientSession() as http:
        filling = step(place, breaker, clock)
        await filling.fill(http)
    assert (breaker.state is State.OPEN) is blamed
    assert filling.counts.requests == (1 if blamed else 10)
