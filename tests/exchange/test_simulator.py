"""The simulated market: seeded, shaped like Binance, contiguous ids, the rate asked for."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from k2.errors import ConfigError
from k2.exchange.capture import Frame, stream_of
from k2.exchange.simulator import Simulator, SimulatorConfig, frames
from k2.sources.binance import BinanceMapper
from tests.exchange.feeds import START_NS

SYMBOLS = ("BTCUSDT", "ETHUSDT", "ETHBTC", "PEPEUSDT")
CONFIG = SimulatorConfig(SYMBOLS, rate=5_000, seed=7, frames=20_000)


@pytest.fixture(scope="module")
def made() -> list[Frame]:
    return list(frames(CONFIG, START_NS))


def test_same_seed_same_market(made: list[Frame]) -> None:
    assert list(frames(CONFIG, START_NS)) == made
    other = SimulatorConfig(SYMBOLS, rate=5_000, seed=8, frames=20_000)
    assert list(frames(other, START_NS)) != made


def test_every_frame_maps(made: list[Frame]) -> None:
    mapper = BinanceMapper(SYMBOLS)
    mapped = mapper.map([(f.recv_ns // 1_000, f.data) for f in made], ingestion_us=0)
    assert mapped.refused == []
    assert mapped.trades.num_rows + mapped.quotes.num_rows == len(made)
    assert set(mapped.trades["symbol"].to_pylist()) == set(SYMBOLS)


def test_frames_have_the_keys_of_binance_in_its_order(made: list[Frame]) -> None:
    shapes = {
        "trade": ["e", "E", "s", "t", "p", "q", "T", "m", "M"],
        "bookTicker": ["u", "s", "b", "B", "a", "A"],
    }
    for frame in made[:2_000]:
        content = json.loads(frame.data)
        assert list(content) == ["stream", "data"]
        assert list(content["data"]) == shapes[frame.stream.partition("@")[2]]
        assert stream_of(frame.data).decode() == frame.stream
        for key in "pqbBaA":
            text = content["data"].get(key)
            assert text is None or re.fullmatch(r"\d+\.\d{8}", text)


def test_ids_are_contiguous_for_trades_and_rise_for_quotes(made: list[Frame]) -> None:
    last: dict[str, int] = {}
    for frame in made:
        content = json.loads(frame.data)["data"]
        ident = content.get("t", content.get("u"))
        if frame.stream.endswith("@trade"):
            assert ident == last.get(frame.stream, 0) + 1
        else:
            assert ident > last.get(frame.stream, 0)
            assert float(content["b"]) < float(content["a"])
        last[frame.stream] = ident


def test_rate_order_and_bursts(made: list[Frame]) -> None:
    times = [frame.recv_ns for frame in made]
    assert times == sorted(times)
    seconds = (times[-1] - START_NS) / 1e9
    assert len(made) / seconds == pytest.approx(CONFIG.rate, rel=0.2)
    per_10_ms = Counter((time - START_NS) // 10_000_000 for time in times)
    assert max(per_10_ms.values()) > 2.5 * CONFIG.rate / 100
    together = Counter(json.loads(f.data)["data"].get("T") for f in made if "@trade" in f.stream)
    assert max(together.values()) > 3


def test_the_first_symbol_is_the_most_active(made: list[Frame]) -> None:
    counts = Counter(frame.stream.partition("@")[0].upper() for frame in made)
    assert [symbol for symbol, _ in counts.most_common()] == list(SYMBOLS)


@pytest.mark.parametrize(
    ("symbols", "rate"), [((), 1.0), (("btcusdt",), 1.0), (("BTC-USDT",), 1.0), (("A",), 0.0)]
)
def test_impossible_markets_are_refused(symbols: tuple[str, ...], rate: float) -> None:
    with pytest.raises(ConfigError):
        SimulatorConfig(symbols, rate)


def test_time_starts_when_the_feed_is_opened() -> None:
    feed = Simulator(SimulatorConfig(("BTCUSDT",), rate=1_000, frames=3))
    (segment,) = feed.segments()
    assert len(list(segment)) == 3
    assert feed.symbols() == ("BTCUSDT",)
