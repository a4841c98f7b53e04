"""Several workers on one Kafka: one level, sessions that move, every record once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from k2.degradation.levels import Level
from k2.topics import BINANCE_TRADES
from tests.e2e.cluster import (
    FEED,
    FIRST_ID,
    SESSIONS,
    SYMBOLS,
    Cluster,
    every_trade_once,
    sessions,
    spread,
)
from tests.e2e.harness import gap_events, trades_by_symbol

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

PARTITIONS = 16

TINY = {"K2_DEGRADATION_MEMORY_LIMIT_MB": "1"}


async def test_all_workers_agree_on_the_level_whoever_dies(cluster: Cluster) -> None:
    idle = {"K2_BINANCE_ENABLED": "false"}
    await cluster.start("a", **idle)
    await cluster.agree(Level.NORMAL)
    await cluster.start("b", **idle, **TINY)
    await cluster.agree(Level.CIRCUIT_BREAK)
    (judge,) = cluster.judges()
    await cluster.kill(judge)
    await cluster.start("c", **idle)
    if judge == "a":
        # The full one lives: the worker that joined learns the level from the table, then from it.
        await cluster.agree(Level.CIRCUIT_BREAK)
        assert await cluster.stop("b") == 0
    await cluster.agree(Level.NORMAL)
    await cluster.start("d", **idle, **TINY)
    await cluster.agree(Level.CIRCUIT_BREAK)
    assert await cluster.stop("d") == 0
    await cluster.agree(Level.NORMAL)


async def test_sessions_move_and_every_trade_is_stored_once(
    cluster: Cluster, tmp_path: Path
) -> None:
    await cluster.start_exchange(
        "simulate", "--symbols", ",".join(SYMBOLS), "--rate", "400", "--first-id", str(FIRST_ID)
    )
    await cluster.start("a", **FEED)
    await cluster.until("one worker runs all sessions", spread)
    await cluster.start("b", **FEED)
    found = await cluster.until(
        "two workers share the sessions",
        lambda found: spread(found) and all(sessions(found).values()),
    )
    assert all(status["ready"] for status in found.values())
    await cluster.kill("a")
    await cluster.until("the survivor runs all sessions", spread)
    await cluster.start("c", **FEED)
    await cluster.until("they are shared again", spread)
    assert await cluster.stop("b") == 0
    await cluster.until("the last one runs all", spread)
    exchange = cluster.exchange
    assert exchange is not None
    await exchange.stop_exchange()
    await cluster.until("drained", lambda found: found["c"]["drained"])
    assert await cluster.stop("c") == 0

    every_trade_once(tmp_path / "data")


async def test_roles_on_workers_of_their_own_bring_every_trade_into_the_lake(
    cluster: Cluster, tmp_path: Path
) -> None:
    feed = {"K2_BINANCE_SYMBOLS": ",".join(SYMBOLS), "K2_BINANCE_STREAMS": "trade"}
    await cluster.start_exchange(
        *("simulate", "--symbols", ",".join(SYMBOLS), "--rate", "400", "--frames", "2000"),
        *("--first-id", str(FIRST_ID)),
    )
    await cluster.start("sink", K2_ROLES="sink")
    await cluster.start("validate", K2_ROLES="validate,control")
    await cluster.start("source", K2_ROLES="source,query", **feed)
    trades = 0

    async def finished() -> int:
        assert cluster.exchange is not None
        sent = await cluster.exchange.exchange_client.status()
        return int(sent["trades_sent"]) if sent["finished"] else 0

    async with asyncio.timeout(60):
        while not (trades := await finished()):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.2)
    await cluster.until(
        "every trade is stored",
        lambda found: found["sink"]["sink"]["tables"]["trades"]["rows"] == trades,
        timeout_s=30,
    )
    assert await cluster.stop("validate") == 0
    # Its successor begins at its checkpoints: tables are where the partitions are.
    successor = await cluster.start("successor", K2_ROLES="validate,control")

    async def lags() -> list[float]:
        samples = await successor.metrics()
        prefix, log = "k2_kafka_consumer_lag_messages{", f'topic="{BINANCE_TRADES.log}"'
        return [value for name, value in samples.items() if name.startswith(prefix) and log in name]

    async with asyncio.timeout(30):
        while len(found := await lags()) < PARTITIONS or any(found):  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    assert (await successor.client.status())["validate"]["records"] == 0
    for name in ("source", "successor", "sink"):
        assert await cluster.stop(name) == 0
    ids = trades_by_symbol(tmp_path / "data")
    assert sum(map(len, ids.values())) == trades
    assert gap_events(tmp_path / "data") == {}


async def test_a_worker_that_only_answers_shows_what_the_others_do(cluster: Cluster) -> None:
    await cluster.start_exchange("simulate", "--symbols", ",".join(SYMBOLS), "--rate", "400")
    mover = await cluster.start("mover", K2_ROLES="source,validate,sink,control", **FEED)
    query = await cluster.start("query", K2_ROLES="query")
    await cluster.until(
        "both know the other, and what it has stored",
        lambda found: all(
            status["cluster"]["workers"] == 2 and status["cluster"]["rows"] > 0
            for status in found.values()
        ),
    )
    hold = {"level": "CIRCUIT_BREAK", "minutes": 5, "reason": "a test"}
    assert (await query.request("POST", "/v1/degradation", json=hold))[0] == 200
    await cluster.until(
        "what is put off shows where nothing is put off",
        lambda found: found["query"]["cluster"]["shed_pending"] > 0,
    )
    _, shed = await query.get("/v1/shed")
    assert shed["data"]["pending"] == sum(shed["data"]["pending_by_tier"].values()) > 0
    assert shed["data"]["ranges"] == []
    _, workers = await query.get("/v1/workers")
    asked, other = workers["data"]
    assert (asked["here"], asked["roles"], asked["sessions"]) == (True, ["query"], [])
    assert (other["here"], other["level"]) == (False, "CIRCUIT_BREAK")
    assert other["age_s"] < 10
    for one in (query, mover):
        status, feeds = await one.get("/v1/feeds")
        assert (status, {feed["session"] for feed in feeds["data"]}) == (200, set(SESSIONS))
        assert {feed["worker"] for feed in feeds["data"]} == {other["worker"]}
        assert (await one.get("/v1/gaps"))[0] == 200
        assert (await one.get("/v1/trades"))[0] == 503
    assert (await query.request("POST", "/v1/degradation/clear", json={}))[0] == 200
    await cluster.until(
        "all is brought",
        lambda found: (
            found["query"]["level"] == 0 and found["query"]["cluster"]["shed_pending"] == 0
        ),
    )
    assert await cluster.stop("mover") == 0
    assert await cluster.stop("query") == 0
