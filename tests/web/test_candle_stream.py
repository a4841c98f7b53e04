"""Candles pushed: what is there, then each as it changes; equal to what a query says."""

from __future__ import annotations

from typing import Any

from tests.query.rows import T0_US, place, rows
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


async def test_other_timeframes(api: Api) -> None:
    url = "/v1/stream?data_type=candles&symbols=BTCUSDT&timeframe=1d"
    async with api.client.get(url, headers=KEY) as response:
        ((_, body),) = await events(response, 1)
        assert body["data"] == await asked(api, "BTCUSDT", "1d")
        produce(api, 15, 90)
        ((_, body),) = await events(response, 1)
        assert body["data"] == await asked(api, "BTCUSDT", "1d")
