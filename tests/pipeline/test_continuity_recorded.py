"""Continuity over what exchanges really sent."""

import gzip
import json

import pytest

from k2.pipeline.continuity import Continuity, Policy
from k2.pipeline.intervals import IntervalSet
from tests.data import BTC_0808, BTC_0809, require
from tests.pipeline.continuity_parts import open_after, run


def capture(path, stream, key):
    records = []
    with gzip.open(path, "rt") as lines:
        for line in lines:
            at, frame = line.split(" ", 1)
            message = json.loads(frame)
            if message.get("stream", "").endswith(stream):
                data = message["data"]
                records.append((data["s"], data[key], data.get("T", int(at) // 10**6) * 1_000))
    return records


@pytest.mark.parametrize("order", [1, -1])
def test_recorded_trades_in_either_order_have_no_gap_and_each_once(order):
    require(BTC_0808, BTC_0809)
    files = [capture(path, "@trade", "t") for path in (BTC_0808, BTC_0809)][::order]
    log = files[0] + files[1] + files[0]
    continuity = Continuity(Policy.CONTIGUOUS)
    keep, events, counts = run(continuity, log, range(997, len(log), 997))
    assert sum(keep) == 19_904
    assert not any(keep[19_904:])
    # The later file first: what lies before it is missing until the earlier one has come.
    assert [e.event for e in events[:1]] == ["opened"] * (order == -1)
    assert open_after(events) == set()
    assert counts[3:] == [0, int(order == -1), 0]
    assert list(continuity.tracks["BTCUSDT"].current.seen) == [(3735683259, 3735703162)]


def test_recorded_quotes_replayed_are_all_duplicates():
    require(BTC_0808)
    log = capture(BTC_0808, "@bookTicker", "u")
    continuity = Continuity(Policy.RISING)
    first = run(continuity, [(*r, False, b"s1" if n == 0 else None) for n, r in enumerate(log)])
    again = run(continuity, [(*r, False, b"s2" if n == 0 else None) for n, r in enumerate(log)])
    assert all(first[0])
    assert not any(again[0])
    assert isinstance(continuity.tracks["BTCUSDT"].current.seen, IntervalSet)
    assert len(continuity.tracks["BTCUSDT"].current.seen) == 1
