"""Gaps from end to end: ids dropped from a replay, disclosed, fetched, and closed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests import data
from tests.e2e.harness import Stack, trade_ids
from tests.e2e.test_exchanges import worker
from tests.sources.cases import KRAKEN_REST

#: Seven ranges, a hundred ids in all.
RANGES = [(100, 1), (500, 2), (3_000, 7), (3_020, 10), (9_000, 20), (15_000, 25), (19_000, 35)]


async def gaps(stack: Stack, **params: str) -> list[dict[str, Any]]:
    status, body = await stack.get("/v1/gaps", **params)
    assert status == 200, body
    return body["data"]


async def until_gaps(stack: Stack, count: int, **params: str) -> list[dict[str, Any]]:
    for _ in range(600):
        found = await gaps(stack, **params)
        if len(found) == count:
            return found
        await asyncio.sleep(0.1)
    raise AssertionError(f"{found}\n{stack.worker.log_tail(30)}")  # type: ignore[union-attr]


async def test_dropped_ids_are_disclosed_exactly_and_fetched(tmp_path: Path) -> None:
    data.require(data.BTC_0808, data.BTC_0809)
    ranges = [(data.FIRST_TRADE + at, data.FIRST_TRADE + at + size) for at, size in RANGES]
    dropped = [ident for first, end in ranges for ident in range(first, end)]
    assert len(dropped) == 100
    captures = [f"--capture={path}" for path in (data.BTC_0808, data.BTC_0809)]
    async with Stack(tmp_path) as stack:
        await stack.start_exchange("serve", *captures, "--speed", "max")
        await stack.fault("drop_ids", ids=dropped)
        await stack.start_worker(K2_BINANCE_STREAMS="trade")
        brought = data.TRADES - 100
        await stack.until("the replay", lambda s: s["validate"]["records"] >= brought)
        found = await until_gaps(stack, 7)
        assert sorted((gap["expected"], gap["received"]) for gap in found) == ranges
        assert {gap["how"] for gap in found} == {"jump"}
        status, body = await stack.get("/v1/feeds")
        (feed,) = body["data"]
        assert (status, feed["exchange"], feed["open_gaps"], feed["missing_ids"]) == (
            200,
            "binance",
            7,
            100,
        )
        assert feed["state"] == "connected"
        await stack.stop_worker()

        # Again, with back-fill: the ids are still not sent, but the history has them.
        await stack.start_worker(
            K2_BINANCE_STREAMS="trade", K2_BINANCE_BACKFILL="true", K2_BINANCE_BACKFILL_PER_S="10"
        )
        assert await until_gaps(stack, 0) == []
        closed = await gaps(stack, state="closed")
        assert sorted((gap["expected"], gap["received"]) for gap in closed) == ranges
        assert {(gap["how"], gap["missing"]) for gap in closed} == {("backfill", 0)}
        (row,) = await stack.sql(
            "select count(*) n, count(*) filter (where is_backfill) fetched, "
            "count(*) filter (where json_extract_string(vendor_data, '$.source') = "
            "'rest_history') marked from trades"
        )
        assert row == {"n": data.TRADES, "fetched": 100, "marked": 100}
        await stack.stop_worker()
    ids = trade_ids(tmp_path / "data")
    assert ids == list(range(data.FIRST_TRADE, data.LAST_TRADE + 1))


async def test_a_history_that_goes_by_time_fills_gaps_of_ids(tmp_path: Path) -> None:
    data.require(KRAKEN_REST)
    first = 10_218_208
    dropped = [*range(first + 300, first + 310), first + 700]
    async with Stack(tmp_path) as stack:
        await stack.start_exchange("serve", "--capture", str(KRAKEN_REST), "--speed", "max")
        await stack.fault("drop_ids", ids=dropped)
        environment = worker("kraken", stack, SYMBOLS="BTC/USDT", BACKFILL_PER_S="10")
        await stack.start_worker(**environment)
        closed = await until_gaps(stack, 2, state="closed")
        assert sorted((gap["expected"], gap["received"], gap["how"]) for gap in closed) == [
            (first + 300, first + 310, "backfill"),
            (first + 700, first + 701, "backfill"),
        ]
        await stack.until("all stored", lambda s: s["drained"])
        (row,) = await stack.sql(
            "select count(*) n, count(distinct trade_id) ids, "
            "count(*) filter (where is_backfill) fetched from trades"
        )
        assert row == {"n": 1_000, "ids": 1_000, "fetched": len(dropped)}


async def test_gaps_answers_name_what_is_wrong(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        await stack.start_worker(K2_BINANCE_ENABLED="false")
        assert await gaps(stack, symbol="BTCUSDT", state="all") == []
        status, body = await stack.get("/v1/gaps", state="shut")
        assert (status, body["detail"]["parameter"]) in {(400, "state"), (422, "state")}
        assert (await stack.get("/v1/feeds"))[1]["data"] == []
