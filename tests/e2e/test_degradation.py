"""Overload: the level rises, what matters least is put off, and in the end nothing is missing."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from k2.settings import load_settings
from k2.topics import BINANCE_TRADES
from tests.e2e.backlog import write_backlog
from tests.e2e.harness import Stack, gap_ranges, log_values, trades_by_symbol

pytestmark = pytest.mark.timeout(180)

#: Per symbol; a worker needs seconds for all of them.
IDS = 150_000
KEPT, PUT_OFF = ("BTCUSDT", "ETHUSDT"), ("XYZUSDT", "ABCUSDT")
TIERS = {"crypto": {"quotes": ["USDT"], "tier1": ["BTC"], "tier2": ["ETH"]}}


@pytest.fixture
async def backlog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.setenv("K2_DATA_DIR", str(data))
    await write_backlog(load_settings(), KEPT + PUT_OFF, IDS)
    return data


@pytest.mark.parametrize("level", ["GRACEFUL", "CIRCUIT_BREAK"])
async def test_a_backlog_raises_the_level_and_everything_is_stored_once(
    tmp_path: Path, backlog: Path, level: str
) -> None:
    tiers = tmp_path / "tiers.json"
    tiers.write_text(json.dumps(TIERS))
    never = "1000000000"
    lags = {"SOFT": "50", "GRACEFUL": "1000", "AGGRESSIVE": never, "BREAK": never}
    if level == "CIRCUIT_BREAK":
        lags |= {"BREAK": "1000"}
    environment = {f"K2_DEGRADATION_LAG_{name}": value for name, value in lags.items()}
    seen: list[dict[str, Any]] = []

    def note(status: dict[str, Any]) -> bool:
        seen.append(status)
        calm = status["degradation"]["name"] == "NORMAL" and status["level"] == 0
        return bool(status["validate"]["shed"] and calm and status["drained"])

    async with Stack(tmp_path, environment) as stack:
        await stack.start_worker(
            K2_BINANCE_ENABLED="false",
            K2_DEGRADATION_EXEMPT="false",
            K2_DEGRADATION_TIERS_FILE=str(tiers),
            K2_DEGRADATION_COOLDOWN_S="2",
            K2_DEGRADATION_INTERVAL_S="0.05",
            # Small batches, so that the backlog takes its time.
            K2_KAFKA_BATCH_RECORDS="500",
        )
        raised = await stack.until(level, lambda s: s["degradation"]["name"] == level)
        assert raised["level"] == raised["degradation"]["level"]
        assert raised["degradation"]["reason"].startswith("lag ")
        answers = await asyncio.gather(*(stack.get("/v1/trades", limit="1") for _ in range(3)))
        busy = [status for status, _ in answers]
        final = await stack.until("everything is stored", note, timeout_s=120)
        assert (await stack.get("/v1/trades", limit="1"))[0] == 200
        counted = await stack.sql(
            "select count(*) as n, count(distinct message_id) as d from trades"
        )
        gauge = await stack.metrics()
        assert await stack.stop_worker() == 0
    if level == "CIRCUIT_BREAK":
        assert 503 in busy
    else:
        assert set(busy) == {200}
    total = IDS * len(KEPT + PUT_OFF)
    assert counted == [{"n": total, "d": total}]
    assert any(s["validate"]["shed_pending"] for s in seen), "the ledger shows what waits"
    shed = final["validate"]["shed"]
    assert (final["validate"]["shed_pending"], final["validate"]["shed_brought"]) == (0, shed)
    tiers_shed = {
        name.split('symbol_tier="')[1][0]: value
        for name, value in gauge.items()
        if name.startswith("k2_messages_shed_total")
    }
    assert sum(tiers_shed.values()) == shed > 0
    assert set(tiers_shed) == ({"3"} if level == "GRACEFUL" else {"1", "2", "3"})
    ids = trades_by_symbol(backlog)
    assert {symbol: len(found) for symbol, found in ids.items()} == dict.fromkeys(
        KEPT + PUT_OFF, IDS
    )
    assert all(found == list(range(1, IDS + 1)) for found in ids.values())
    assert gap_ranges(backlog) == [], "what is put off is no gap"
    assert len(log_values(backlog, BINANCE_TRADES.deferred)) == shed


async def degrade(stack: Stack, *arguments: str) -> tuple[int, str]:
    """`k2 degrade …` against the stack's worker: (exit status, what it printed)."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "k2.cli", "degrade", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "K2_API_PORT": str(stack.port)},
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_a_level_held_by_hand_is_everybodys_and_is_let_go(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        await stack.start_exchange("simulate", "--symbols", "BTCUSDT", "--rate", "50")
        await stack.start_worker()
        await stack.until("trades", lambda s: s["validate"]["records"] > 0)
        held = await degrade(stack, "set", "CIRCUIT_BREAK", "--for", "10m", "--reason", "drill")
        assert held[0] == 0, held
        await stack.until("held", lambda s: s["level"] == 4)
        assert (await stack.get("/v1/trades"))[0] == 503
        await stack.until("put off", lambda s: s["validate"]["shed"] > 0)
        status, text = await degrade(stack, "status")
        assert status == 0
        assert "drill" in text
        assert "NORMAL → CIRCUIT_BREAK" in text
        _, shed = await stack.get("/v1/shed")
        assert shed["data"]["pending"] > 0
        assert shed["data"]["ranges"][0]["records"] > 0
        assert (await degrade(stack, "clear"))[0] == 0
        await stack.until("let go", lambda s: s["level"] == 0)
        await stack.until("all is brought", lambda s: s["validate"]["shed_pending"] == 0)
        await stack.stop_exchange()
        await stack.until("stored", lambda s: s["drained"])
        assert await stack.stop_worker() == 0
    assert gap_ranges(tmp_path / "data") == []
    status, text = await degrade(stack, "status")
    assert status == 2
    assert "K2_API_PORT" in text
