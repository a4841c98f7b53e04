"""Dead letters end to end: a limit that stops, a list, and a replay that lands rows once."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from k2.testing.kafka import running_kafka
from k2.topics import BINANCE_TRADES
from tests.e2e.harness import Stack, trades_by_symbol
from tests.e2e.test_bad_input import trade
from tests.services.require import require_services

pytestmark = pytest.mark.timeout(180)

HOUR_MS = 3_600_000
STRICT = {"K2_VALIDATE_MAX_FUTURE_S": "60"}
MENDED = {"K2_VALIDATE_MAX_FUTURE_S": "36000"}


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def log_environment(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    common = {"K2_BINANCE_SYMBOLS": "BTCUSDT,ETHUSDT", "K2_SINK_INTERVAL_S": "0.5"}
    if request.param == "embedded":
        yield common
        return
    require_services("kafka")
    with running_kafka() as server:
        yield {
            **common,
            "K2_KAFKA_BOOTSTRAP_SERVERS": server.bootstrap,
            "K2_KAFKA_SESSION_TIMEOUT_S": "6",
        }


async def k2(stack: Stack, *arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "k2.cli", *arguments, "--data-dir", str(stack.directory / "data"),
        env={**os.environ, **stack.environment},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def dlq(stack: Stack, *arguments: str) -> dict[str, Any]:
    status, out, err = await k2(stack, "dlq", *arguments, "--json")
    assert status == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


async def start(stack: Stack, **environment: str) -> None:
    """The exchange reaches the worker: what is injected from here on arrives."""
    simulate = ("simulate", "--symbols", "BTCUSDT", "--rate", "100")
    await stack.start_exchange(*simulate, "--first-id", "1000")
    await stack.start_worker(**environment)
    await stack.until("trades flow", lambda s: s["source"]["trades"] > 0)


async def refuse_two(stack: Stack) -> None:
    """One trade that a mended rule will take, and one that no rule takes."""
    ahead = trade(t=7, T=_now_ms() + HOUR_MS)
    for raw in (ahead, trade(t=8, p="-1")):
        await stack.fault("raw", hex=raw.hex())
    await stack.until("both are refused", lambda s: s["validate"]["dead_letters"] == 2)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def test_a_replayed_letter_lands_once_and_a_bad_one_comes_back_with_its_first(
    tmp_path: Path, log_environment: dict[str, str]
) -> None:
    embedded = "K2_KAFKA_BOOTSTRAP_SERVERS" not in log_environment
    async with Stack(tmp_path, log_environment) as stack:
        await start(stack, **STRICT)
        await refuse_two(stack)
        if embedded:
            status, _, error = await k2(stack, "dlq", "list")
            assert status == 1
            assert stack.worker is not None
            assert f"process id {stack.worker.pid}" in error
            assert "stop it" in error
            assert await stack.stop_worker() == 0
        found = await dlq(stack, "list")
        assert found["reasons"] == {"TIMESTAMP_OUT_OF_RANGE": 1, "PRICE_NOT_POSITIVE": 1}
        by_reason = {letter["reason"]: letter for letter in found["letters"]}
        assert {letter["state"] for letter in found["letters"]} == {"open"}
        ident = by_reason["TIMESTAMP_OUT_OF_RANGE"]["id"]
        shown = await dlq(stack, "show", ident)
        assert shown["record"]["trade_id"] == "7"
        only = await dlq(stack, "list", "--reason", "PRICE_NOT_POSITIVE", "--since", "10m")
        assert only["count"] == 1
        assert (await dlq(stack, "list", "--until", "1h"))["count"] == 0
        if not embedded:
            assert await stack.stop_worker() == 0
        status, _, error = await k2(stack, "dlq", "replay")
        assert status == 2, "everything only when asked for"
        tried = await dlq(stack, "replay", "--all", "--dry-run")
        assert [row["offset"] for row in tried["redriven"]] == [None, None]
        first = await dlq(stack, "replay", "--topic", BINANCE_TRADES.log)
        assert len(first["redriven"]) == 2
        assert (await dlq(stack, "replay", "--all"))["left"] == {"re-driven before": 2}
        assert len((await dlq(stack, "replay", "--all", "--again"))["redriven"]) == 2

        await stack.start_worker(**MENDED)
        await stack.until(
            "the bad one is refused twice more", lambda s: s["validate"]["dead_letters"] == 2
        )
        await stack.until("the good one is stored", lambda s: s["validate"]["duplicates"] >= 1)
        await stack.stop_exchange()
        await stack.until("drained", lambda s: s["drained"])
        assert await stack.stop_worker() == 0
        after = {letter["id"]: letter for letter in (await dlq(stack, "list"))["letters"]}
    ids = trades_by_symbol(tmp_path / "data")
    assert ids["ETHUSDT"] == [7], "once, however often it was replayed"
    bad = by_reason["PRICE_NOT_POSITIVE"]["id"]
    assert after[ident]["state"].startswith("re-driven to")
    assert after[bad]["state"] == "refused again"
    again = [letter for letter in after.values() if letter["first_letter"] == bad]
    assert [letter["id"] for letter in again] == after[bad]["refused_again_as"]
    assert len(again) == 2


async def test_too_many_in_a_row_stop_the_worker_and_leave_the_records_in_the_log(
    tmp_path: Path,
) -> None:
    environment = {"K2_BINANCE_SYMBOLS": "BTCUSDT,ETHUSDT", "K2_SINK_INTERVAL_S": "0.5"}
    async with Stack(tmp_path, environment) as stack:
        await start(stack, K2_VALIDATE_DLQ_MAX_CONSECUTIVE="5", **STRICT)
        for number in range(12):
            late = trade(t=number + 1, T=_now_ms() + HOUR_MS)
            await stack.fault("raw", hex=late.hex())
        assert stack.worker is not None
        assert await stack.worker.ended(40), "a bad deploy must stop"
        assert await stack.stop_worker() == 1
        log = stack.log_file.read_text(encoding="utf-8", errors="replace")
        assert "K2_VALIDATE_DLQ_MAX_CONSECUTIVE allows 5" in log
        letters = (await dlq(stack, "list"))["count"]
        assert letters <= 5, "the stream was emptied into the dead letters"
        # The deploy is rolled back: what was not yet refused passes as if nothing had been.
        await stack.start_worker(**MENDED)
        await stack.until("records pass again", lambda s: s["validate"]["records"] > 30)
        await stack.stop_exchange()
        await stack.until("drained", lambda s: s["drained"])
        assert await stack.stop_worker() == 0
    ids = trades_by_symbol(tmp_path / "data")
    assert len(ids["ETHUSDT"]) == len(set(ids["ETHUSDT"]))
    assert len(ids["ETHUSDT"]) + letters >= 12, "each is stored or a dead letter"
