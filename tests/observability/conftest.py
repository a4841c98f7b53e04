"""One scripted run of a worker that a real Prometheus scrapes; the suites look at what it left."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from k2.settings import load_settings
from tests.e2e.backlog import write_backlog
from tests.e2e.harness import Stack
from tests.services.prometheus import Prometheus, running_prometheus

_TIERS = {"crypto": {"quotes": ["USDT"], "tier1": ["BTC"], "tier2": ["ETH"]}}
_ENVIRONMENT = {
    "K2_BINANCE_SYMBOLS": "BTCUSDT,ETHUSDT,SOLUSDT",
    "K2_BINANCE_STALE_AFTER_S": "20",
    "K2_BINANCE_PING_INTERVAL_S": "1",
    "K2_API_MAX_BODY_BYTES": "10000",
    "K2_SINK_INTERVAL_S": "0.5",
    "K2_VALIDATE_CHECKPOINT_S": "1",
    "K2_MAINTAIN_INTERVAL_S": "2",
    "K2_MAINTAIN_MIN_FILES": "2",
    "K2_DEGRADATION_EXEMPT": "false",
    "K2_DEGRADATION_INTERVAL_S": "0.05",
    "K2_DEGRADATION_COOLDOWN_S": "1",
    "K2_DEGRADATION_LAG_SOFT": "2000",
    "K2_DEGRADATION_LAG_GRACEFUL": "5000",
    "K2_DEGRADATION_LAG_AGGRESSIVE": "1000000000",
    "K2_DEGRADATION_LAG_BREAK": "1000000000",
    # Small batches, so that the backlog takes long enough to be seen.
    "K2_KAFKA_BATCH_RECORDS": "500",
}
_BACKLOG = 40_000
_PAST = "2024-01-01T00:00:00Z"


@dataclass(frozen=True)
class Run:
    """`families`: the worker's last `/metrics`, by name; `ended_s`: when Prometheus saw it last."""

    families: dict[str, Metric]
    prometheus: Prometheus
    ended_s: float


def trade(ident: int, *, age_s: float = 0.0, price: str = "2680.14") -> str:
    """A frame with a trade of SOLUSDT, hexadecimal."""
    now_ms = time.time_ns() // 1_000_000 - round(age_s * 1_000)
    data = {"e": "trade", "E": now_ms, "s": "SOLUSDT", "t": ident, "p": price, "q": "0.5"}
    data |= {"T": now_ms, "m": True, "M": True}
    return json.dumps({"stream": "solusdt@trade", "data": data}).encode().hex()


def crossed_quote() -> str:
    data = {"u": 1, "s": "ETHUSDT", "b": "3", "B": "1", "a": "2", "A": "1"}
    return json.dumps({"stream": "ethusdt@bookTicker", "data": data}).encode().hex()


async def misbehave(stack: Stack) -> None:
    """Everything an exchange can do that a metric counts."""
    for ident in (50_000_000, 50_000_003, 50_000_001, 50_000_100):
        await stack.fault("raw", hex=trade(ident, age_s=7_200))
    # A third more than the trade before: flagged, and stored.
    await stack.fault("raw", hex=trade(50_000_101, age_s=7_200, price="3600"))
    await stack.fault("raw", hex=trade(7))  # ids start over, hours later
    await stack.fault("raw", hex=trade(8, price="-1"))
    await stack.fault("raw", hex=crossed_quote())
    await stack.fault("garbage")
    await stack.fault("duplicate", n=5)
    # They are doubles of what comes next, and a market may be quiet for a moment.
    await stack.until("the doubles came", lambda s: s["validate"]["duplicates"] >= 5)
    await stack.fault("disconnect", abort=True)


async def ask(stack: Stack) -> None:
    """Requests of every outcome."""
    for path in ("/v1/trades", "/v1/quotes", "/v1/symbols", "/v1/nothing", "/health"):
        await stack.get(path)
    await stack.get("/v1/trades", limit="-1")
    # The second answer is the first one, kept.
    for _ in range(2):
        await stack.get("/v1/trades", symbol="BTCUSDT", end_time=_PAST)
    await stack.request("POST", "/v1/sql", json={"sql": "select 1 as " + "n" * 20_000})
    await stack.sql("select count(*) as n from trades")
    await stack.get("/v1/sql", sql="drop table trades")


async def scripted(directory: Path, prometheus_of: Any) -> Run:
    tiers = directory / "tiers.json"
    tiers.write_text(json.dumps(_TIERS))
    async with Stack(directory, {**_ENVIRONMENT, "K2_DEGRADATION_TIERS_FILE": str(tiers)}) as stack:
        prometheus = prometheus_of(f"127.0.0.1:{stack.port}")
        simulate = ["simulate", "--symbols", "BTCUSDT", "--rate", "400"]
        await stack.start_exchange(*simulate, "--first-id", "1000")
        await stack.start_worker()
        await stack.until("trades are stored", lambda s: s["sink"]["tables"]["trades"]["rows"] > 0)
        await misbehave(stack)
        await ask(stack)
        await stack.until(
            "it goes on, and what was put off is stored",
            lambda s: (
                sum(s["source"]["sessions"][0]["reconnects"].values()) > 0
                and s["validate"]["duplicates"] >= 5
                and s["validate"]["shed"] > 0
                and s["validate"]["shed_pending"] == 0
                and s["degradation"]["name"] == "NORMAL"
                and s["lake"]["gaps"] > 0
            ),
        )
        await ask(stack)
        # Two samples of every counter, or rates have nothing to say; and evaluations after them.
        for _ in range(6):
            await asyncio.sleep(1)
            await ask(stack)
        assert stack.http is not None
        async with stack.http.get(f"http://127.0.0.1:{stack.port}/metrics") as answer:
            text = await answer.text()
        ended_s = time.time()
        assert await stack.stop_worker() == 0
    families = {family.name: family for family in text_string_to_metric_families(text)}
    return Run(families, prometheus, ended_s)


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The scripted run; its Prometheus still answers."""
    directory = tmp_path_factory.mktemp("observability")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("K2_DATA_DIR", str(directory / "data"))
        (directory / "data").mkdir()
        symbols = ("ETHUSDT", "XYZUSDT", "ABCUSDT")
        asyncio.run(write_backlog(load_settings(), symbols, _BACKLOG))
    with _Later(directory) as later:
        yield asyncio.run(scripted(directory, later.start))


class _Later:
    """Starts Prometheus once the worker's port is known, and stops it at the end."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._context: Any = None

    def start(self, target: str) -> Prometheus:
        self._context = running_prometheus(self._directory, target)
        return self._context.__enter__()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._context is not None:
            self._context.__exit__(*exc)
