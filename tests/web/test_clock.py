"""Answers that the clock changes are not taken for unchanged ones."""

from __future__ import annotations

import pytest

from k2.testing.clock import ManualClock
from k2.web.resources import candles, records
from tests.query.rows import T0_US
from tests.web.api import KEY, Api

MINUTE_S = 60
FRESH = {"symbol": "BTCUSDT", "exchange": "BINANCE"}


async def tag_of(api: Api, path: str, known: str = "", **params: str) -> tuple[int, str]:
    headers = {**KEY, "If-None-Match": known}
    async with api.client.get(path, params=params, headers=headers) as response:
        await response.read()
        return response.status, response.headers["ETag"]


@pytest.mark.parametrize(
    ("path", "params", "changes"),
    [
        ("/v1/trades/recent", FRESH, True),
        ("/v1/ohlcv/1m", {"symbol": "BTCUSDT", "start_time": "2024-08-08T23:50:00Z"}, True),
        ("/v1/ohlcv/1m", {**FRESH, "fill": "forward", "start_time": "2024-08-08T23:50:00Z"}, True),
        ("/v1/ohlcv/1m", {**FRESH, "fill": "forward", "end_time": "2024-08-09T09:00:00Z"}, True),
        ("/v1/ohlcv/1m", {"symbol": "BTCUSDT"}, False),
        ("/v1/ohlcv/1m", {**FRESH, "end_time": "2024-08-09"}, False),
    ],
)
async def test_what_the_clock_made_of_a_question_is_in_its_tag(
    api: Api, monkeypatch: pytest.MonkeyPatch, path: str, params: dict[str, str], changes: bool
) -> None:
    clock = ManualClock(T0_US + 2 * MINUTE_S * 1_000_000)
    for module in (candles, records):
        monkeypatch.setattr(module, "SYSTEM_CLOCK", clock)
    status, tag = await tag_of(api, path, **params)
    assert (status, await tag_of(api, path, tag, **params)) == (200, (304, tag))
    await clock.advance(MINUTE_S)
    status, later = await tag_of(api, path, tag, **params)
    assert (status == 200, later != tag) == (changes, changes)


async def test_a_fill_goes_on_while_its_snapshot_stays(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock(T0_US + MINUTE_S * 1_000_000)
    monkeypatch.setattr(candles, "SYSTEM_CLOCK", clock)
    snapshot = (await api.get("/v1/snapshots"))[1]["data"][0]["snapshot_id"]
    end = "2024-08-09T09:00:00Z"
    asked = {**FRESH, "fill": "forward", "snapshot_id": snapshot, "end_time": end}
    for later_s, immutable in ((0, False), (24 * 3_600, True)):
        await clock.advance(later_s)
        async with api.client.get("/v1/ohlcv/1m", params=asked, headers=KEY) as response:
            assert ("immutable" in response.headers["Cache-Control"]) is immutable


@pytest.mark.parametrize(
    "text",
    [
        "SELECT count(*) n FROM trades WHERE timestamp > NOW() - INTERVAL 1 DAY",
        "SELECT current_date AS d",
        "SELECT * FROM (SELECT age(timestamp '2020-01-01') a)",
        "SELECT list_transform([1], lambda x: today())",
        "WITH t AS (SELECT current_timestamp::VARCHAR AS c) SELECT c FROM t",
    ],
)
async def test_sql_that_asks_for_the_time_is_kept_by_nobody(api: Api, text: str) -> None:
    async with api.client.get("/v1/sql", params={"sql": text}, headers=KEY) as response:
        assert response.status == 200, await response.text()
        assert "ETag" not in response.headers
        assert response.headers["Cache-Control"] == "no-store"


async def test_other_sql_has_its_tag(api: Api) -> None:
    text = "SELECT date_trunc('day', timestamp) AS d, 'now' AS n, count(*) FROM trades GROUP BY 1"
    status, tag = await tag_of(api, "/v1/sql", sql=text)
    assert (status, await tag_of(api, "/v1/sql", tag, sql=text)) == (200, (304, tag))
