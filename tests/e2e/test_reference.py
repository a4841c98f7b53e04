"""Reference data on Kafka: loaded while workers run, known to one that only answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.harness import Stack

pytestmark = [pytest.mark.kafka, pytest.mark.heavy, pytest.mark.timeout(240)]

FIELDS = "symbol,base_asset,tick_size,tier"


async def told(worker: Stack, tick: str | None) -> list[dict[str, Any]]:
    """What a worker says of its symbols, once their tick size is `tick`."""
    async with asyncio.timeout(60):
        while True:
            status, found = await worker.get("/v1/symbols", fields=FIELDS)
            assert status == 200, found
            rows: list[dict[str, Any]] = found["data"]
            if rows and {row["tick_size"] for row in rows} == {tick}:
                return rows
            await asyncio.sleep(0.1)


async def test_what_is_loaded_is_known_on_every_worker_at_once_and_after_a_kill(
    cluster: Cluster, tmp_path: Path
) -> None:
    await cluster.start_exchange("simulate", "--symbols", "BTCUSDT", "--rate", "100")
    shared = {"K2_REFERENCE": "true", "K2_BINANCE_STREAMS": "trade"}
    stores = await cluster.start("stores", **shared, K2_ROLES="source,validate,sink,control")
    answers = await cluster.start("answers", **shared, K2_ROLES="query")
    await stores.until("trades", lambda s: s["sink"]["tables"]["trades"]["rows"] > 0)
    # It has read the lake now, where nothing is: what follows it knows by the table alone.
    (row,) = await told(answers, None)
    assert row == {"symbol": "BTCUSDT", "base_asset": None, "tick_size": None, "tier": 1}
    for tick, since in (("0.5", "2024-01-01"), ("0.25", "2024-02-01"), ("0.125", "2024-01-15")):
        path = tmp_path / f"{since}.csv"
        path.write_text(f"symbol,base_asset,quote_asset,tick_size\nBTCUSDT,BTC,USDT,{tick}\n")
        await answers.command(
            *("load", "reference", str(path), "--asset-class", "crypto", "--exchange", "binance"),
            *("--valid-from", since, "--data-dir", str(tmp_path / "data"), "--json"),
        )
        # What is loaded last held before: it changes nothing of now.
        (row,) = await told(answers, "0.25" if since == "2024-01-15" else tick)
        assert row["base_asset"] == "BTC"
    await cluster.kill("answers")
    again = await cluster.start("answers", **shared, K2_ROLES="query")
    await told(again, "0.25")
