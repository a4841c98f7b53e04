"""Workers that come and go while data flows: stopped, killed, restarted, without the lake."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.e2e.cluster import (
    FEED,
    FIRST_ID,
    SESSION_TIMEOUT_S,
    SYMBOLS,
    Cluster,
    every_trade_once,
    sessions,
    spread,
)
from tests.e2e.harness import Storage

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

#: What is promised of a graceful stop, flush and hand-over included.
STOP_S = 10.0


async def two_workers(cluster: Cluster) -> None:
    """Workers `a` and `b` that share the sessions of a running feed."""
    await cluster.start_exchange(
        "simulate", "--symbols", ",".join(SYMBOLS), "--rate", "400", "--first-id", str(FIRST_ID)
    )
    await cluster.start("a", **FEED)
    await cluster.start("b", **FEED)
    await cluster.until(
        "both share the sessions", lambda found: spread(found) and all(sessions(found).values())
    )


async def drained_and_stopped(cluster: Cluster) -> None:
    """End the feed, have everything stored, stop everybody."""
    assert cluster.exchange is not None
    await cluster.exchange.stop_exchange()
    await cluster.until("drained", lambda found: all(s["drained"] for s in found.values()))
    for name in list(cluster.workers):
        assert await cluster.stop(name) == 0


async def stop_in_time(cluster: Cluster, name: str) -> str:
    """Stop a worker; what it said. It must not need longer than promised."""
    log_file = cluster.workers[name].log_file
    began_s = asyncio.get_running_loop().time()
    assert await cluster.stop(name) == 0
    assert asyncio.get_running_loop().time() - began_s < STOP_S
    return log_file.read_text(errors="replace")


async def test_a_stopped_worker_hands_over_in_time(cluster: Cluster, tmp_path: Path) -> None:
    await two_workers(cluster)
    said = await stop_in_time(cluster, "a")
    assert '"worker_drained"' in said
    assert '"handover_incomplete"' not in said
    await cluster.until("the other runs all sessions", spread, STOP_S)
    await drained_and_stopped(cluster)
    every_trade_once(tmp_path / "data")


async def test_a_killed_worker_is_replaced_within_its_session(
    cluster: Cluster, tmp_path: Path
) -> None:
    await two_workers(cluster)
    await cluster.kill("a")
    await cluster.until("the other runs all sessions", spread, SESSION_TIMEOUT_S + 5)
    await drained_and_stopped(cluster)
    every_trade_once(tmp_path / "data")


async def test_workers_restarted_in_turn_lose_and_repeat_nothing(
    cluster: Cluster, tmp_path: Path
) -> None:
    await two_workers(cluster)
    for name in ("a", "b"):
        await stop_in_time(cluster, name)
        await cluster.until("the other runs all sessions", spread)
        await cluster.start(name, **FEED)
        await cluster.until(
            "they share again", lambda found: spread(found) and all(sessions(found).values())
        )
    await drained_and_stopped(cluster)
    every_trade_once(tmp_path / "data")


async def test_a_worker_stops_and_hands_over_in_time_while_the_lake_is_away(
    cluster: Cluster, tmp_path: Path
) -> None:
    await two_workers(cluster)
    await cluster.until(
        "rows are stored", lambda found: all(s["sink"]["rows"] > 0 for s in found.values())
    )
    storage = Storage(tmp_path / "data")
    storage.leave()
    await cluster.until(
        "rows wait", lambda found: all(s["sink"]["pending_rows"] > 0 for s in found.values())
    )
    said = await stop_in_time(cluster, "a")
    assert '"drain_incomplete"' in said
    assert '"worker_crashed"' not in said
    storage.come_back()
    await cluster.until("the other runs all sessions", spread)
    await drained_and_stopped(cluster)
    every_trade_once(tmp_path / "data")
