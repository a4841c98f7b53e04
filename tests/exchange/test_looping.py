"""A looping capture: every id once, trades without a hole, time that goes on."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from k2.errors import CaptureError
from k2.exchange.looping import LoopingFeed
from k2.exchange.tally import TRADE, id_of, kind_of
from tests.exchange.feeds import book, trade


def capture(path: Path, *frames: object) -> Path:
    path.write_bytes(b"".join(b"%d %s\n" % (f.recv_ns, f.data) for f in frames))  # type: ignore[attr-defined]
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    frames = [trade(7, at_ms=0), book(50, at_ms=1), trade(8, at_ms=2), book(90, at_ms=5)]
    return capture(tmp_path / "capture", *frames)


def test_three_rounds_go_on_where_the_last_one_ended(path: Path) -> None:
    feed = LoopingFeed((path,))
    frames = list(itertools.islice(next(feed.segments()), 12))
    ids = {
        kind: [
            id_of(kind_of(f.stream), f.data) for f in frames if (kind_of(f.stream) == TRADE) is kind
        ]
        for kind in (True, False)
    }
    assert ids[True] == [7, 8, 9, 10, 11, 12]
    assert ids[False] == [50, 90, 91, 131, 132, 172]
    times = [json.loads(f.data)["data"]["T"] for f in frames if kind_of(f.stream) == TRADE]
    assert times == sorted(times)
    assert len(set(times)) == 6
    received = [frame.recv_ns for frame in frames]
    assert received == sorted(received)


def test_the_same_market_under_more_symbols(path: Path) -> None:
    feed = LoopingFeed((path,), ("ETHUSDT",))
    assert feed.symbols() == ("BTCUSDT", "ETHUSDT")
    first, second = itertools.islice(next(feed.segments()), 2)
    assert second.stream == "ethusdt@trade"
    changed = json.loads(second.data)
    assert changed["stream"] == "ethusdt@trade"
    assert {**changed["data"], "s": "BTCUSDT"} == json.loads(first.data)["data"]


def test_several_symbols_cannot_go_on_together(tmp_path: Path) -> None:
    mixed = capture(tmp_path / "capture", trade(1), trade(1, symbol="ETHUSDT"))
    with pytest.raises(CaptureError, match="one symbol"):
        LoopingFeed((mixed,))
