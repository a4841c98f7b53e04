"""Recorded sessions through the whole platform: counts, candles, and replays that add nothing."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest

from tests.data import (
    BTC_0808,
    BTC_0809,
    FIRST_TRADE,
    LAST_TRADE,
    QUOTES,
    TRADES,
    btc_oracle,
    require,
)
from tests.e2e.harness import Stack, candles_compared, gap_ranges, quote_ids, run_demo, trade_ids

pytestmark = pytest.mark.timeout(300)

CANDLES = """
select epoch_ms(date_trunc('minute', timestamp)) as window_start_ms,
       arg_min(price, (timestamp, platform_sequence)) as open,
       max(price) as high,
       min(price) as low,
       arg_max(price, (timestamp, platform_sequence)) as close,
       sum(quantity) as volume,
       count(*) as trade_count
from trades
where symbol = 'BTCUSDT'
group by 1
order by 1
"""

#: The same from the candles table.
KEPT = """
select open, high, low, close, volume, vwap, trade_count from candles
where symbol = 'BTCUSDT' and timeframe = '1m' order by window_start
"""


@pytest.fixture(autouse=True)
def _captures():
    require(BTC_0808, BTC_0809)


def number(text: str) -> str:
    """Decimal text without trailing zeros, so that scale does not matter."""
    return text.rstrip("0").rstrip(".") if "." in text else text


async def test_both_captures_land_once_and_candles_equal_the_oracle(tmp_path: Path) -> None:
    report = await run_demo(tmp_path / "data", BTC_0808, BTC_0809)
    assert report["lake"] == {"trades": TRADES, "quotes": QUOTES}
    assert report["source"]["trades"] == TRADES
    assert report["dead_letters"] == report["gaps"] == report["duplicates_dropped"] == 0
    ids = trade_ids(tmp_path / "data")
    assert ids == list(range(FIRST_TRADE, LAST_TRADE + 1))
    oracle = btc_oracle()["candles_1m"]
    async with Stack(tmp_path) as stack:
        await stack.start_worker(K2_BINANCE_ENABLED="false")
        candles = await stack.sql(CANDLES)
        kept = await stack.sql(KEPT)
        _, served = await stack.get("/v1/ohlcv/1m", symbol="BTCUSDT", limit="100")
    fields = ("open", "high", "low", "close", "volume")
    assert [
        (c["window_start_ms"], c["trade_count"], *(number(c[f]) for f in fields)) for c in candles
    ] == [(c["window_start_ms"], c["trade_count"], *(number(c[f]) for f in fields)) for c in oracle]
    shown = [
        (c["trade_count"], *(number(c[f]) for f in (*fields, "vwap")))
        for c in sorted(oracle, key=lambda c: c["window_start_ms"])
    ]
    for found in (kept, served["data"][::-1]):
        assert [(c["trade_count"], *(c[f] for f in (*fields, "vwap"))) for c in found] == shown


async def test_a_replay_into_the_same_directory_adds_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    first = await run_demo(data, BTC_0808)
    again = await run_demo(data, BTC_0808)
    assert again["lake"] == first["lake"]
    assert candles_compared(data).different == 0
    assert again["duplicates_dropped"] == first["lake"]["trades"] + first["lake"]["quotes"]
    shutil.rmtree(data / "log")
    without_log = await run_demo(data, BTC_0808)
    assert without_log["lake"] == first["lake"]
    other = await run_demo(data, BTC_0809)
    assert other["lake"] == {"trades": TRADES, "quotes": QUOTES}
    compared = candles_compared(data)
    assert (compared.different, compared.behind, compared.trades) == (0, 0, TRADES)
    assert len(set(trade_ids(data))) == TRADES
    assert len(set(quote_ids(data))) == QUOTES
    assert gap_ranges(data) == []


async def test_reversed_order_gives_the_same_lake(tmp_path: Path) -> None:
    await run_demo(tmp_path / "data", BTC_0809, BTC_0808)
    ids = trade_ids(tmp_path / "data")
    assert ids == list(range(FIRST_TRADE, LAST_TRADE + 1))
    assert len(set(quote_ids(tmp_path / "data"))) == QUOTES
    assert gap_ranges(tmp_path / "data") == []


async def test_the_hole_between_two_captures_is_a_gap_until_it_is_filled(tmp_path: Path) -> None:
    data, older = tmp_path / "data", tmp_path / "older.gz"
    with gzip.open(BTC_0808, "rt") as lines:
        first_third = lines.readlines()[: 41_249 // 3]
    older.write_bytes(gzip.compress("".join(first_third).encode()))
    # The newer one first: nothing after it shows the hole.
    report = await run_demo(data, BTC_0809, older)
    ids = trade_ids(data)
    missing = sorted(set(range(FIRST_TRADE, LAST_TRADE + 1)).difference(ids))
    assert gap_ranges(data) == [(missing[0], missing[-1])]
    assert report["gaps"] == 1
    shutil.rmtree(data / "log")
    report = await run_demo(data, BTC_0808)
    assert trade_ids(data) == list(range(FIRST_TRADE, LAST_TRADE + 1))
    assert gap_ranges(data) == []
    assert report["gaps"] == 0
