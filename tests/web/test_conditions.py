"""One rule which trades make a price, in every figure over intervals."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from tests.query.rows import place, rows
from tests.web.api import Api
from tests.web.test_weaknesses import H0_US, MINUTE_US, served

ASKED = {
    "symbols": ["OFFUSDT"], "metrics": ["ohlcv", "volume_profile"], "interval": "1day",
    "start_time": H0_US, "end_time": H0_US + 60 * MINUTE_US,
}  # fmt: skip
#: The whole day that the trades are of.
DAY = "/v1/summary/OFFUSDT/2024-08-09"


@pytest.fixture
async def marked(api: Api) -> AsyncIterator[Api]:
    """Three trades a minute apart, of which the settings leave the second, odd one out."""
    made = rows(
        range(3), [H0_US + at * MINUTE_US for at in range(3)], symbols="OFFUSDT",
        prices=[Decimal(5), Decimal(500), Decimal(6)], partition=8,
    )  # fmt: skip
    at = made.column_names.index("trade_conditions")
    codes = pa.array([None, ["3"], []], made.schema.field(at).type)
    api.platform.commit(made.set_column(at, made.field(at), codes), place(8))
    api.platform.refresh()
    async with served(api, exclude_conditions=frozenset("3")) as configured:
        yield configured


async def high(api: Api, path: str, **asked: Any) -> str:
    status, body = await (api.post(asked, path) if "symbols" in asked else api.get(path, **asked))
    assert status == 200, body
    rows_of = body["data"] if isinstance(body["data"], list) else [body["data"]]
    return max((row["high"] for row in rows_of), key=Decimal)


@pytest.mark.parametrize(
    ("path", "asked"),
    [("/v1/aggregations", ASKED), (DAY, {}), ("/v1/ohlcv/1d", {"symbol": "OFFUSDT"})],
)
async def test_figures_leave_the_same_trades_out(marked: Api, path: str, asked: Any) -> None:
    assert await high(marked, path, **asked) == "6"
    assert await high(marked, path, **asked, exclude_conditions="9") == "500"


async def test_a_profile_has_the_trades_of_its_interval(marked: Api) -> None:
    _, body = await marked.post(ASKED, "/v1/aggregations")
    (row,) = body["data"]
    assert Decimal(row["volume_profile"][-1]["price_high"]) == Decimal(row["high"])
    assert sum(Decimal(one["volume"]) for one in row["volume_profile"]) == Decimal(row["volume"])


async def test_a_fill_begins_with_a_price_that_counts(marked: Api) -> None:
    asked = {
        "symbol": "OFFUSDT", "fill": "forward", "start_time": H0_US + MINUTE_US * 3 // 2,
        "end_time": H0_US + 2 * MINUTE_US,
    }  # fmt: skip
    _, body = await marked.get("/v1/ohlcv/1m", **asked)
    assert [row["close"] for row in body["data"]] == ["5"]
    _, body = await marked.get("/v1/ohlcv/1m", **asked, exclude_conditions="9")
    assert [row["close"] for row in body["data"]] == ["500"]


async def test_a_fill_reads_one_pin(marked: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = marked.platform.engine
    pins: list[str] = []
    pin = engine.pin

    def counted(table: str, *more: Any) -> Any:
        pins.append(table)
        return pin(table, *more)

    monkeypatch.setattr(engine, "pin", counted)
    period = {"start_time": H0_US + MINUTE_US, "end_time": H0_US + 9 * MINUTE_US}
    _, body = await marked.get("/v1/ohlcv/1m", symbol="OFFUSDT", fill="forward", **period)
    assert (len(body["data"]), pins) == (8, ["trades"])
    pins.clear()
    assert (await marked.post(ASKED, "/v1/aggregations"))[0] == 200
    assert pins == ["trades"]


async def test_series_of_a_batch_take_what_candles_take(marked: Api) -> None:
    item = {"symbol": "OFFUSDT", "start_time": H0_US, "end_time": H0_US + 5 * MINUTE_US}
    asked = [
        {**item, "timeframe": "1m", "fill": "forward"},
        {**item, "timeframe": "1d", "exclude_conditions": ["9"]},
    ]
    _, body = await marked.post({"requests": asked}, "/v1/ohlcv/batch")
    filled = body["data"]["1m_OFFUSDT"]["data"]
    assert [row["close"] for row in reversed(filled)] == ["5", "5", "6", "6", "6"]
    assert body["data"]["1d_OFFUSDT"]["data"][0]["high"] == "500"


async def test_two_periods_of_one_series_are_refused(marked: Api) -> None:
    item = {"timeframe": "1m", "symbol": "OFFUSDT", "exchange": "BINANCE"}
    asked = {"requests": [item, {**item, "start_time": H0_US}]}
    status, body = await marked.post(asked, "/v1/ohlcv/batch")
    assert (status, body["detail"]["parameter"]) == (422, "requests")
    assert body["detail"]["value"] == "1m_OFFUSDT_BINANCE"
