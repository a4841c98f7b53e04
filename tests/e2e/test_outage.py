"""The lake is away: a short while is waited out, a long one ends the worker, nothing is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Stack, Storage, gap_ranges, trade_ids

pytestmark = pytest.mark.timeout(120)

FIRST_ID = 1_000


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    environment = {"K2_SINK_INTERVAL_S": "0.3", "K2_BINANCE_STREAMS": "trade"}
    async with Stack(tmp_path, environment) as made:
        simulate = ["simulate", "--symbols", "BTCUSDT", "--rate", "200"]
        await made.start_exchange(*simulate, "--first-id", str(FIRST_ID))
        yield made


async def stored_once(stack: Stack) -> list[int]:
    """Drain and stop; the ids, each stored once and every missing one disclosed."""
    await stack.stop_exchange()
    await stack.until("drained", lambda s: s["drained"])
    assert await stack.stop_worker() == 0
    ids = trade_ids(stack.directory / "data")
    assert len(ids) == len(set(ids)), "a trade is stored twice"
    missing = set(range(FIRST_ID, ids[-1] + 1)) - set(ids)
    disclosed = gap_ranges(stack.directory / "data")
    assert missing == {i for first, last in disclosed for i in range(first, last + 1)}
    return ids


def breaker(status: dict[str, Any]) -> dict[str, Any]:
    """Facts of the store's circuit breaker."""
    (found,) = [one for one in status["breakers"] if one["name"] == "store"]
    return found


async def test_a_short_outage_is_waited_out(stack: Stack) -> None:
    await stack.start_worker()
    await stack.until("rows are stored", lambda s: s["lake"]["trades"] > 20)
    storage = Storage(stack.directory / "data")
    storage.leave()
    await stack.until("rows wait for the lake", lambda s: s["sink"]["pending_rows"] > 100)
    await stack.until("the store is left alone", lambda s: breaker(s)["state"] == "OPEN")
    _, health = await stack.get("/health")
    (check,) = [one for one in health["data"]["dependencies"] if one["name"] == "breakers"]
    assert check["status"] == "degraded"
    assert "store is OPEN" in check["message"]
    storage.come_back()
    await stack.until("they are stored", lambda s: s["lake"]["trades"] > 150)
    await stack.until("commits that land close it", lambda s: breaker(s)["state"] == "CLOSED")
    ids = await stored_once(stack)
    assert ids == list(range(FIRST_ID, FIRST_ID + len(ids))), "nothing was lost"


async def test_a_long_outage_ends_the_worker_and_the_next_one_stores_everything(
    stack: Stack,
) -> None:
    await stack.start_worker(K2_ICEBERG_COMMIT_RETRY_S="1")
    await stack.until("rows are stored", lambda s: s["lake"]["trades"] > 20)
    storage = Storage(stack.directory / "data")
    storage.leave()
    assert stack.worker is not None
    assert await stack.worker.ended(40), "a worker that cannot store must not go on"
    assert await stack.stop_worker() == 1
    log = stack.log_file.read_text(encoding="utf-8", errors="replace")
    assert '"event": "worker_crashed"' in log
    assert "market_data.trades" in log
    storage.come_back()
    before = len(trade_ids(stack.directory / "data"))
    await stack.start_worker()
    await stack.until("rows are stored again", lambda s: s["lake"]["trades"] > before + 50)
    ids = await stored_once(stack)
    assert len(ids) > before + 50
