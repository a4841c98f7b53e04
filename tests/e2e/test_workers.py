"""Several workers on one Kafka: one level, sessions that move, every record once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from k2.degradation.levels import Level
from k2.testing.kafka import missing_tools, running_kafka
from k2.topics import BINANCE_TRADES
from tests.e2e.harness import Stack, gap_events, trades_by_symbol

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

#: Sessions of one symbol each; more than one partition has some.
SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT", "BNBUSDT", "ADAUSDT")
FIRST_ID = 5_000
PARTITIONS = 16


class Cluster:
    """Workers that share a Kafka, a lake and an exchange."""

    def __init__(self, directory: Path, environment: dict[str, str], stack: AsyncExitStack) -> None:
        self._directory = directory
        self._environment = environment
        self._stack = stack
        self.workers: dict[str, Stack] = {}
        self.exchange: Stack | None = None

    async def start(self, name: str, **environment: str) -> Stack:
        made = Stack(self._directory, self._environment, name)
        if self.exchange is not None:
            made.exchange_port = self.exchange.exchange_port
        await self._stack.enter_async_context(made)
        await made.start_worker(**environment)
        self.workers[name] = made
        return made

    async def start_exchange(self, *arguments: str) -> None:
        self.exchange = Stack(self._directory, {}, "exchange")
        await self._stack.enter_async_context(self.exchange)
        await self.exchange.start_exchange(*arguments)

    async def kill(self, name: str) -> None:
        await self.workers.pop(name).kill_worker()

    async def stop(self, name: str) -> int:
        return await self.workers.pop(name).stop_worker()

    async def statuses(self) -> dict[str, dict[str, Any]]:
        names = list(self.workers)
        found = await asyncio.gather(*(self.workers[name].client.status() for name in names))
        return dict(zip(names, found, strict=True))

    async def until(self, what: str, test: Any, timeout_s: float = 60) -> dict[str, Any]:
        """Poll every worker until `test` holds for the statuses by name."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while not test(found := await self.statuses()):
            for worker in self.workers.values():
                assert worker.worker is not None
                worker.worker.check()
            if loop.time() > deadline:
                tails = {n: w.worker.log_tail(15) for n, w in self.workers.items() if w.worker}
                raise AssertionError(f"{what}: not within {timeout_s} s; {found}\n{tails}")
            await asyncio.sleep(0.1)
        return found

    async def agree(self, level: Level) -> None:
        """Every worker shows `level`, for the same reason and since the same moment."""

        def same(found: dict[str, Any]) -> bool:
            shown = [status["degradation"] for status in found.values()]
            facts = {(one["level"], one["reason"], one["since_us"]) for one in shown}
            return len(facts) == 1 and shown[0]["level"] == level

        await self.until(f"all agree on {level.name}", same)

    def judges(self) -> list[str]:
        """Workers that have set the level: owners of the control partition, now or before."""
        return [
            name
            for name, worker in self.workers.items()
            if " degradation_level" in worker.log_file.read_text(errors="replace")
            or '"degradation_level"' in worker.log_file.read_text(errors="replace")
        ]


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    reason = missing_tools()
    if reason and not os.environ.get("CI"):
        pytest.skip(reason)
    with running_kafka() as server:
        environment = {
            "K2_KAFKA_BOOTSTRAP_SERVERS": server.bootstrap,
            "K2_KAFKA_SESSION_TIMEOUT_S": "6",
            "K2_DEGRADATION_EXEMPT": "false",
            "K2_DEGRADATION_COOLDOWN_S": "0.5",
            "K2_DEGRADATION_INTERVAL_S": "0.2",
            "K2_DEGRADATION_MEMORY_LIMIT_MB": "1000000",
            "K2_SINK_INTERVAL_S": "1",
        }
        async with AsyncExitStack() as stack:
            yield Cluster(tmp_path, environment, stack)


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


def sessions(found: dict[str, Any]) -> dict[str, set[str]]:
    return {
        name: {session["session"] for session in status["source"]["sessions"]}
        for name, status in found.items()
    }


def spread(found: dict[str, Any], wanted: Iterable[str]) -> bool:
    """Each session runs on exactly one worker, and has received something."""
    everywhere = [key for keys in sessions(found).values() for key in keys]
    return sorted(everywhere) == sorted(wanted) and all(
        session["frames"] > 0
        for status in found.values()
        for session in status["source"]["sessions"]
    )


async def test_sessions_move_and_every_trade_is_stored_once(
    cluster: Cluster, tmp_path: Path
) -> None:
    wanted = [f"binance-{number}" for number in range(len(SYMBOLS))]
    feed = {
        "K2_BINANCE_SYMBOLS": ",".join(SYMBOLS),
        "K2_BINANCE_SYMBOLS_PER_SESSION": "1",
        "K2_BINANCE_STREAMS": "trade",
    }
    await cluster.start_exchange(
        "simulate", "--symbols", ",".join(SYMBOLS), "--rate", "400", "--first-id", str(FIRST_ID)
    )
    await cluster.start("a", **feed)
    await cluster.until("one worker runs all sessions", lambda found: spread(found, wanted))
    await cluster.start("b", **feed)
    found = await cluster.until(
        "two workers share the sessions",
        lambda found: spread(found, wanted) and all(sessions(found).values()),
    )
    assert all(status["ready"] for status in found.values())
    await cluster.kill("a")
    await cluster.until("the survivor runs all sessions", lambda found: spread(found, wanted))
    await cluster.start("c", **feed)
    await cluster.until("they are shared again", lambda found: spread(found, wanted))
    assert await cluster.stop("b") == 0
    await cluster.until("the last one runs all", lambda found: spread(found, wanted))
    exchange = cluster.exchange
    assert exchange is not None
    await exchange.stop_exchange()
    await cluster.until("drained", lambda found: found["c"]["drained"])
    assert await cluster.stop("c") == 0

    ids = trades_by_symbol(tmp_path / "data")
    assert set(ids) == set(SYMBOLS)
    disclosed = gap_events(tmp_path / "data")
    for symbol, found_ids in ids.items():
        assert len(found_ids) == len(set(found_ids)), f"{symbol}: a trade is stored twice"
        missing = set(range(found_ids[0], found_ids[-1] + 1)) - set(found_ids)
        gaps = {i for first, last in disclosed.get(symbol, []) for i in range(first, last + 1)}
        assert gaps == missing, symbol


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
