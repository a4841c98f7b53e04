"""Freshness: ages by the clock, rates over five seconds, last prices by exchange time."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from k2.freshness import _SAMPLES, Freshness
from k2.records import to_lake
from k2.testing.clock import ManualClock
from tests.steps.parts import EPOCH, QUOTES, TRADES, Record, quote_rows, trade_rows


def rows(
    records: list[Record], at_us: int, kind: str = "trades", price: str = "1.5"
) -> pa.RecordBatch:
    made = trade_rows(records, at_us, price) if kind == "trades" else quote_rows(records, at_us)
    topic = TRADES if kind == "trades" else QUOTES
    return to_lake(
        kind, made, epoch=EPOCH, topic=topic.log, partition=0, sequences=np.arange(len(records))
    )


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def test_ages_are_from_the_socket_to_being_visible(clock: ManualClock) -> None:
    freshness = Freshness(clock)
    assert freshness.percentiles_ms() == {"p50": None, "p99": None, "samples": 0}
    at_us = clock.now_us()
    await clock.advance(1.0)
    # Received 999, 998 and 997 ms ago; ids are milliseconds.
    freshness.observe("trades", rows([("BTCUSDT", i) for i in (1, 2, 3)], at_us))
    assert freshness.percentiles_ms() == {"p50": 998.0, "p99": 999.0, "samples": 3}


async def test_a_clock_ahead_of_ours_gives_no_negative_age(clock: ManualClock) -> None:
    freshness = Freshness(clock)
    freshness.observe("trades", rows([("BTCUSDT", 5_000)], clock.now_us()))
    assert freshness.percentiles_ms()["p50"] == 0.0


async def test_only_the_newest_samples_count(clock: ManualClock) -> None:
    freshness = Freshness(clock)
    old_us = clock.now_us()
    await clock.advance(100.0)
    freshness.observe("trades", rows([("BTCUSDT", 1)] * 10, old_us))
    now_us = clock.now_us()
    for _ in range(5):
        freshness.observe("trades", rows([("BTCUSDT", 0)] * (_SAMPLES // 5), now_us))
    assert freshness.percentiles_ms() == {"p50": 0.0, "p99": 0.0, "samples": _SAMPLES + 10}


async def test_more_rows_than_samples_at_once_keep_the_last(clock: ManualClock) -> None:
    freshness = Freshness(clock)
    freshness.observe("trades", rows([("BTCUSDT", 0)] * (_SAMPLES + 7), clock.now_us()))
    assert freshness.percentiles_ms()["samples"] == _SAMPLES


async def test_symbols_have_rates_over_five_seconds_busiest_first(clock: ManualClock) -> None:
    freshness = Freshness(clock)
    at_us = clock.now_us()
    freshness.observe("trades", rows([("ETHUSDT", i) for i in range(5)], at_us))
    freshness.observe("trades", rows([("BTCUSDT", i) for i in range(15)], at_us))
    freshness.observe("quotes", rows([("ETHUSDT", i) for i in range(20)], at_us, "quotes"))
    assert freshness.symbols() == [
        {"symbol": "ETHUSDT", "last_price": "1.5", "trades_per_s": 1.0, "quotes_per_s": 4.0},
        {"symbol": "BTCUSDT", "last_price": "1.5", "trades_per_s": 3.0, "quotes_per_s": 0.0},
    ]
    await clock.advance(6.0)
    assert [row["trades_per_s"] for row in freshness.symbols()] == [0.0, 0.0]


async def test_the_last_price_is_of_the_latest_trade_not_the_last_to_come(
    clock: ManualClock,
) -> None:
    freshness = Freshness(clock)
    at_us = clock.now_us()
    freshness.observe("trades", rows([("BTCUSDT", 10)], at_us, price="100.2500000000"))
    freshness.observe("trades", rows([("BTCUSDT", 3)], at_us, price="99"))
    assert freshness.symbols()[0]["last_price"] == "100.25"
    freshness.observe("trades", rows([("BTCUSDT", 11)], at_us, price="200"))
    assert freshness.symbols()[0]["last_price"] == "200"


async def test_at_most_twenty_symbols_are_shown(clock: ManualClock) -> None:
    freshness = Freshness(clock)
    freshness.observe("trades", rows([(f"S{i:02}USDT", i) for i in range(30)], clock.now_us()))
    assert len(freshness.symbols()) == 20


async def test_rates_slide_over_five_seconds(clock: ManualClock) -> None:
    freshness = Freshness(clock)
    for _ in range(12):
        freshness.observe("trades", rows([("BTCUSDT", 1)] * 10, clock.now_us()))
        await clock.advance(0.5)
    # 20 a second; the oldest second of the window has just begun to leave it.
    assert freshness.symbols()[0]["trades_per_s"] == 20.0
    await clock.advance(2.5)
    assert freshness.symbols()[0]["trades_per_s"] == 10.0
    await clock.advance(1_000.0)
    assert freshness.symbols()[0]["trades_per_s"] == 0.0


async def test_many_symbols_are_each_counted(clock: ManualClock) -> None:
    freshness = Freshness(clock)
    names = [f"S{i:04}USDT" for i in range(500)]
    freshness.observe("quotes", rows([(n, 1) for n in names[:3]], clock.now_us(), "quotes"))
    freshness.observe("trades", rows([(n, 1) for n in names for _ in range(2)], clock.now_us()))
    shown = freshness.symbols()
    assert [row["symbol"] for row in shown] == names[:20]
    assert {row["trades_per_s"] for row in shown} == {0.4}
    assert [row["quotes_per_s"] for row in shown[:4]] == [0.2, 0.2, 0.2, 0.0]
