"""Data quality: anomalies are found wherever batches end; shares and scores are what they say."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2.quality import Anomalies, Quality, of_exchange, score
from k2.testing.clock import ManualClock

#: Prices that move by a few ticks, and now and then by half.
prices = st.lists(
    st.tuples(
        st.sampled_from(["BTCUSDT", "ETHUSDT", "SOLUSDT"]),
        st.floats(100.0, 101.0) | st.floats(150.0, 200.0),
    ),
    min_size=1,
    max_size=200,
)


def found(
    watch: Anomalies, trades: list[tuple[str, float]]
) -> tuple[list[bool], list[bool], list[float]]:
    symbols = pa.array([symbol for symbol, _ in trades])
    far, jumped, _, by = watch.find("X", symbols, np.array([price for _, price in trades]))
    return far.tolist(), jumped.tolist(), by.tolist()


@given(prices, st.integers(0, 200))
def test_jumps_are_those_from_the_trade_before_wherever_batches_end(
    trades: list[tuple[str, float]], cut: int
) -> None:
    last: dict[str, float] = {}
    expected = []
    for symbol, price in trades:
        before = last.get(symbol)
        expected.append(before is not None and abs(price / before - 1.0) > 0.10)
        last[symbol] = price
    watch, got = Anomalies(), []
    for part in (trades[:cut], trades[cut:]):
        if part:
            got += found(watch, part)[1]
    assert got == expected


@given(prices, st.integers(0, 200))
def test_mean_and_variance_are_those_of_all_trades(
    trades: list[tuple[str, float]], cut: int
) -> None:
    watch = Anomalies()
    for part in (trades[:cut], trades[cut:]):
        if part:
            found(watch, part)
    for (_, symbol), row in watch._rows.items():
        known = np.array([price for name, price in trades if name == symbol])
        seen, mean, variance, last = watch._state[row]
        assert (seen, last) == (len(known), known[-1])
        assert mean == pytest.approx(known.mean())
        assert variance == pytest.approx(known.var(), abs=1e-6)


def test_a_price_far_from_the_last_thousand_is_flagged_once_a_hundred_are_known() -> None:
    steady = [("BTCUSDT", 100.0 + 0.1 * (i % 5)) for i in range(100)]
    watch = Anomalies()
    assert not any(found(watch, steady[:99])[0])
    assert found(watch, [("BTCUSDT", 103.0)])[0] == [False], "99 are too few"
    watch = Anomalies()
    found(watch, steady)
    assert found(watch, [("BTCUSDT", 100.6)])[0] == [False], "its own ticks are no anomaly"
    assert found(watch, [("ETHUSDT", 103.0), ("BTCUSDT", 103.0)])[0] == [False, True]


def test_it_forgets_what_was_long_ago() -> None:
    watch = Anomalies()
    for level in (100.0, 200.0):
        for _ in range(120):
            found(watch, [("BTCUSDT", level + 0.1 * (i % 5)) for i in range(100)])
    assert found(watch, [("BTCUSDT", 200.3)])[0] == [False]
    assert found(watch, [("BTCUSDT", 150.0)])[0] == [True]


def rows(clock: ManualClock, *trades: float, age_s: float = 0.1) -> pa.RecordBatch:
    at = clock.now_us() - int(age_s * 1e6)
    return pa.RecordBatch.from_pydict(
        {
            "exchange": ["BINANCE"] * len(trades),
            "symbol": ["BTCUSDT"] * len(trades),
            "trade_id": [str(i) for i in range(len(trades))],
            "price": pa.array([str(t) for t in trades]).cast(pa.decimal128(28, 10)),
            "receive_timestamp": pa.array([at] * len(trades), pa.timestamp("us", "UTC")),
        }
    )


async def test_shares_are_of_the_last_quarter_of_an_hour() -> None:
    clock = ManualClock()
    quality = Quality(clock)
    quality.judged("BINANCE", "trades", records=90, missing=10, refused=9)
    quality.shown("trades", rows(clock, 100.0, 100.0, 100.0, 150.0))
    quality.shown("trades", rows(clock, 150.0, age_s=60.0))
    (report,) = quality.report()
    assert report["completeness"] == 0.9
    assert report["validity"] == 0.9
    assert report["freshness"] == 0.8
    assert report["normality"] == 0.8
    assert report["score"] == pytest.approx(40 * 0.9 + 30 * 0.9 + 20 * 0.8 + 10 * 0.8)
    (odd,) = report["anomalies"]
    assert (odd["kind"], odd["trade_id"], odd["by"]) == ("jump", "3", 0.5)
    assert of_exchange([report], "KRAKEN") == []
    await clock.advance(10 * 60)
    quality.judged("BINANCE", "trades", records=100, missing=0, refused=0)
    await clock.advance(6 * 60)
    (report,) = quality.report()
    assert report["completeness"] == 1.0, "what is longer ago counts no more"
    assert report["freshness"] is None, "nothing was shown since"


def test_what_is_not_known_does_not_count() -> None:
    assert score({"completeness": None, "validity": 0.5, "freshness": None}) == 50.0
    assert score({"completeness": None}) is None


async def test_less_than_all_never_looks_like_all() -> None:
    quality = Quality(ManualClock())
    quality.judged("BINANCE", "trades", records=10**9, missing=2**70, refused=0)
    quality.judged("BINANCE", "quotes", records=10**9, missing=1, refused=0)
    quotes, trades = quality.report()
    assert trades["completeness"] == 0.0
    assert quotes["completeness"] < 1.0
