"""Open gaps: what was opened and has not come, whatever order the events are read in."""

import random

import pytest

from k2.pipeline.open_gaps import Feed, open_ranges

BTC = Feed("BINANCE", "trades", "BTCUSDT")


def event(what, first, last, feed=BTC):
    return {**feed._asdict(), "event": what, "expected": first, "received": last + 1}


EVENTS = [
    event("opened", 10, 99),
    event("closed", 10, 20),
    event("closed", 15, 30),  # told again after a restart, and larger
    event("opened", 200, 201),
    event("closed", 201, 201),
    event("opened", 5, 6, Feed("BINANCE", "trades", "ETHUSDT")),
    event("closed", 5, 6, Feed("BINANCE", "trades", "ETHUSDT")),
]


@pytest.mark.parametrize("seed", range(5))
def test_order_does_not_matter(seed):
    events = random.Random(seed).sample(EVENTS, len(EVENTS))
    assert open_ranges(events) == {BTC: [(31, 99), (200, 200)]}


def test_nothing_is_open_where_nothing_was_opened():
    assert open_ranges([]) == {}
    assert open_ranges([event("closed", 1, 5)]) == {}
