"""Coinbase and Kraken from their own protocols to SQL, with recorded sessions."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Stack, catalog, run_demo
from tests.sources.cases import (
    COINBASE,
    KRAKEN_REST,
    KRAKEN_V1,
    PRODUCTS,
    V1_PAIRS,
    kraken_rest,
    recorded,
)

_SIDES = {"b": "BUY", "s": "SELL"}


def drained(trades: int) -> Any:
    """Everything judged and stored, and `trades` of them brought by the source."""

    def enough(status: dict[str, Any]) -> bool:
        source = status["source"]
        judged = status["validate"]["records"] == source["trades"] + source["quotes"]
        return source["trades"] >= trades and judged and status["drained"]

    return enough


def worker(exchange: str, stack: Stack, **more: str) -> dict[str, str]:
    """Environment of a worker with one feed, from this stack's exchange."""
    prefix = f"K2_{exchange.upper()}_"
    return {
        "K2_EXCHANGES": exchange,
        f"{prefix}URL": f"ws://127.0.0.1:{stack.exchange_port}",
        f"{prefix}RECONNECT_INITIAL_S": "0.1",
        "K2_VALIDATE_MAX_AGE_DAYS": "36500",
        **{f"{prefix}{name}": value for name, value in more.items()},
    }


async def test_coinbase_brings_107_trades_and_a_second_subscription_none(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        await stack.start_exchange("serve", "--capture", str(COINBASE), "--speed", "max")
        await stack.start_worker(**worker("coinbase", stack, SYMBOLS=",".join(PRODUCTS)))
        await stack.until("107 trades", drained(107))
        # The connection ends: the next one subscribes again and is told everything again.
        await stack.fault("disconnect")
        status = await stack.until("everything again", drained(214))
        assert status["validate"]["duplicates"] == 214
        assert status["validate"]["gaps_opened"] == 0
        (row,) = await stack.sql(
            "select count(*) n, count(distinct (symbol, trade_id)) ids, "
            "count(distinct symbol) symbols from trades"
        )
        assert row == {"n": 107, "ids": 107, "symbols": 10}
        (quotes,) = await stack.sql("select count(*) n, min(exchange) x from quotes")
        assert quotes == {"n": 107, "x": "COINBASE"}


async def test_kraken_v2_brings_1000_trades_with_exact_prices(tmp_path: Path) -> None:
    expected = kraken_rest()
    async with Stack(tmp_path) as stack:
        await stack.start_exchange("serve", "--capture", str(KRAKEN_REST), "--speed", "max")
        await stack.start_worker(**worker("kraken", stack, SYMBOLS="BTC/USDT"))
        await stack.until("1,000 trades", drained(1_000))
        # On a busy machine answers may come from an older picture for a moment.
        async with asyncio.timeout(60):
            while True:
                status, body = await stack.get("/v1/trades", symbol="BTCUSDT", limit="2000")
                assert status == 200
                if len(body["data"]) >= len(expected):
                    break
                await asyncio.sleep(0.1)
        stored = {
            row["trade_id"]: (Decimal(row["price"]), Decimal(row["quantity"]), row["side"])
            for row in body["data"]
        }
        assert stored == {
            str(ident): (Decimal(price), Decimal(volume), _SIDES[side])
            for price, volume, _, side, _, _, ident in expected
        }


@pytest.mark.parametrize("lose_log", [False, True])
async def test_kraken_v1_keeps_every_trade_of_every_array_once(
    tmp_path: Path, lose_log: bool
) -> None:
    """These trades have no ids: they are known again by what they say, and by the lake."""
    async with Stack(tmp_path) as stack:
        await stack.start_exchange("serve", "--capture", str(KRAKEN_V1), "--speed", "max")
        environment = worker("kraken", stack, SYMBOLS=",".join(V1_PAIRS), PROTOCOL="v1")
        await stack.start_worker(**environment)
        await stack.until("10 trades", drained(10))
        await stack.stop_worker()
        if lose_log:
            for name in ("log", "faust"):
                (tmp_path / "data" / name).rename(tmp_path / f"gone-{name}")
        await stack.start_worker(**environment)
        status = await stack.until("10 trades again", drained(10))
        assert status["validate"]["duplicates"] == 10
        rows = await stack.sql(
            "select symbol, count(*) n, sum(quantity)::varchar q from trades group by 1 order by 1"
        )
        assert rows == [
            {"symbol": "SCEUR", "n": 6, "q": "52944.6105644800"},
            {"symbol": "XMRUSD", "n": 4, "q": "4.1528433900"},
        ]


async def test_the_demo_replays_a_recorded_kraken_session_exactly(tmp_path: Path) -> None:
    """Every trade of every array, with the digits it was sent with."""
    arrays = [json.loads(frame) for frame in recorded(KRAKEN_V1) if frame.startswith(b"[")]
    sent = Counter(
        (pair.replace("/", ""), Decimal(price), Decimal(volume), _SIDES[side], Decimal(time))
        for _, trades, _, pair in arrays
        for price, volume, time, side, *_ in trades
    )
    report = await run_demo(tmp_path / "data", KRAKEN_V1)
    assert report["lake"]["trades"] == sum(sent.values()) == 10
    rows = catalog(tmp_path / "data").load_table("market_data.trades").scan().to_arrow()
    stored = Counter(
        (row["symbol"], row["price"], row["quantity"], row["side"], _seconds(row["timestamp"]))
        for row in rows.to_pylist()
    )
    assert stored == sent


def _seconds(time: dt.datetime) -> Decimal:
    return Decimal(int(time.timestamp())) + Decimal(time.microsecond).scaleb(-6)
