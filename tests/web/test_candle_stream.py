"""Candles pushed: what is there, then each as it changes; equal to what a query says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from k2.candles.writer import CandleWriter
from k2.clock import SYSTEM_CLOCK
from k2.lake.reader import LakeReader
from k2.query import candle_stream
from k2.timeframes import FRAMES_US
from tests.query.rows import T0_US, place, rows, upto
from tests.web.api import KEY, Api
from tests.web.test_stream import events

SECOND = 1_000_000


def produce(api: Api, sequence: int, second: int, symbol: str = "BTCUSDT") -> None:
    made = rows([sequence], [T0_US + second * SECOND], symbols=symbol)
    api.platform.produce(made, place())


async def asked(api: Api, symbol: str, timeframe: str = "1m") -> list[dict[str, Any]]:
    status, body = await api.get(f"/v1/ohlcv/{timeframe}", symbol=symbol, limit=100)
    assert status == 200
    return [{**row, "timeframe": timeframe} for row in body["data"]]


async def test_a_picture_then_every_change_of_it(api: Api) -> None:
    url = "/v1/stream?data_type=candles&symbols=BTCUSDT,ETHUSDT"
    async with api.client.get(url, headers=KEY) as response:
        ((kind, body),) = await events(response, 1)
        assert kind == "snapshot"
        together = [*await asked(api, "BTCUSDT"), *await asked(api, "ETHUSDT")]
        assert sorted(body["data"], key=str) == sorted(together, key=str)
        for sequence, second, symbol in ((15, 15, "ETHUSDT"), (16, 200, "BTCUSDT")):
            produce(api, sequence, second, symbol)
            ((kind, body),) = await events(response, 1)
            assert kind == "rows"
            (changed,) = body["data"]
            assert changed in await asked(api, symbol)
        assert changed["trade_count"] == 1, "a window of its own"


async def test_a_late_trade_corrects_the_candle_it_belongs_to(api: Api) -> None:
    async with api.client.get(
        "/v1/stream?data_type=candles&symbols=BTCUSDT&snapshot=1", headers=KEY
    ) as response:
        await events(response, 1)
        produce(api, 15, 500)
        await events(response, 1)
        # The window of the cold trades is not in the picture any more.
        produce(api, 16, 1)
        ((kind, body),) = await events(response, 1)
        (changed,) = body["data"]
        assert kind == "rows"
        assert changed in await asked(api, "BTCUSDT")
        assert changed["trade_count"] == 11


async def test_candles_are_folded_off_the_loop(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """As much as comes at once: up to 500,000 trades."""
    on_loop: list[bool] = []
    loop_thread = threading.get_ident()

    def watched(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            on_loop.append(threading.get_ident() == loop_thread)
            return work(*given)

        return run

    for name in ("of_trades", "in_frame", "merge", "of_windows", "shown"):
        monkeypatch.setattr(candle_stream, name, watched(getattr(candle_stream, name)))
    url = "/v1/stream?data_type=candles&symbols=BTCUSDT"
    async with api.client.get(url, headers=KEY) as response:
        await events(response, 1)
        produce(api, 15, 15)
        await events(response, 1)
    assert len(on_loop) > 6
    assert not any(on_loop)


@pytest.mark.parametrize("most", ["_MOST_TRADES", "_MOST_LATE"])
async def test_a_reader_that_is_too_slow_gets_a_new_picture(
    api: Api, monkeypatch: pytest.MonkeyPatch, most: str
) -> None:
    produce(api, 15, 500)
    url = "/v1/stream?data_type=candles&symbols=BTCUSDT&snapshot=1"
    monkeypatch.setattr(candle_stream, most, 1)
    async with api.client.get(url, headers=KEY) as response:
        await events(response, 1)
        stamps = [T0_US + second * SECOND for second in (1, 121, 501)]
        api.platform.produce(rows([16, 17, 18], stamps), place())
        ((kind, body),) = await events(response, 1)
        assert kind == "snapshot"
        assert body["data"] == (await asked(api, "BTCUSDT"))[:1]
        produce(api, 19, 502)
        ((kind, body),) = await events(response, 1)
        assert (kind, body["data"]) == ("rows", (await asked(api, "BTCUSDT"))[:1])


async def test_other_timeframes(api: Api) -> None:
    url = "/v1/stream?data_type=candles&symbols=BTCUSDT&timeframe=1d"
    async with api.client.get(url, headers=KEY) as response:
        ((_, body),) = await events(response, 1)
        assert body["data"] == await asked(api, "BTCUSDT", "1d")
        produce(api, 15, 90)
        ((_, body),) = await events(response, 1)
        assert body["data"] == await asked(api, "BTCUSDT", "1d")


async def test_windows_without_trades_on_request(api: Api) -> None:
    produce(api, 15, 200)
    status, body = await api.get("/v1/ohlcv/1m", symbol="BTCUSDT")
    assert (status, len(body["data"])) == (200, 2)
    _, filled = await api.get("/v1/ohlcv/1m", symbol="BTCUSDT", fill="forward")
    rows = filled["data"]
    assert [row["trade_count"] for row in rows] == [1, 0, 0, 10]
    assert (rows[1]["open"], rows[1]["close"], rows[1]["volume"], rows[1]["vwap"]) == (
        "2.25", "2.25", "0", None,
    )  # fmt: skip
    assert [row for row in rows if row["trade_count"]] == body["data"]
    _, newest = await api.get("/v1/ohlcv/1m", symbol="BTCUSDT", fill="forward", limit=2)
    assert (newest["data"], newest["pagination"]["has_more"]) == (rows[:2], True)
    status, refused = await api.get("/v1/ohlcv/1m", symbol="BTCUSDT", fill="backward")
    assert (status, refused["detail"]["parameter"]) == (422, "fill")


async def test_the_lakes_candles_are_their_newest_versions(api: Api) -> None:
    """And a window whose trades all turned out not to count is none."""
    store = CandleWriter(
        api.platform.writers["candles"],
        LakeReader(api.platform.catalog),
        SYSTEM_CLOCK,
        frozenset(),
    )
    base = None
    for first, last in ((0, 3), (3, 9)):
        made = rows(range(first, last), [T0_US + i * SECOND for i in range(first, last)])
        upto_last = upto(last - 1)
        await asyncio.to_thread(store.commit, made, {place(): base}, {place(): upto_last})
        base = upto_last
    api.platform.refresh()
    text = "select timeframe, version, trade_count from candles where symbol = 'BTCUSDT'"
    status, body = await api.post({"sql": text + " and window_start >= '2024-08-08'"})
    assert status == 200
    assert {row["timeframe"] for row in body["data"]} == set(FRAMES_US)
    assert {(row["version"], row["trade_count"]) for row in body["data"]} == {(2, 9)}
