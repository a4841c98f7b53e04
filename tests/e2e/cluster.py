"""Several workers on one Kafka, as real processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from k2.degradation.levels import Level
from k2.testing.kafka import running_kafka
from tests.e2e.harness import Stack, gap_events, trades_by_symbol
from tests.services.require import require_services

#: Until a killed worker's partitions move.
SESSION_TIMEOUT_S = 6
#: Sessions of one symbol each; more than one partition has some.
SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT", "BNBUSDT", "ADAUSDT")
SESSIONS = tuple(f"binance-{number}" for number in range(len(SYMBOLS)))
FIRST_ID = 5_000
FEED = {
    "K2_BINANCE_SYMBOLS": ",".join(SYMBOLS),
    "K2_BINANCE_SYMBOLS_PER_SESSION": "1",
    "K2_BINANCE_STREAMS": "trade",
}


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
    require_services("kafka")
    with running_kafka() as server:
        environment = {
            "K2_KAFKA_BOOTSTRAP_SERVERS": server.bootstrap,
            "K2_KAFKA_SESSION_TIMEOUT_S": str(SESSION_TIMEOUT_S),
            "K2_DEGRADATION_EXEMPT": "false",
            "K2_DEGRADATION_COOLDOWN_S": "0.5",
            "K2_DEGRADATION_INTERVAL_S": "0.2",
            "K2_DEGRADATION_MEMORY_LIMIT_MB": "1000000",
            "K2_SINK_INTERVAL_S": "1",
        }
        async with AsyncExitStack() as stack:
            yield Cluster(tmp_path, environment, stack)


def sessions(found: dict[str, Any]) -> dict[str, set[str]]:
    return {
        name: {session["session"] for session in status["source"]["sessions"]}
        for name, status in found.items()
    }


def spread(found: dict[str, Any], wanted: Iterable[str] = SESSIONS) -> bool:
    """Each session runs on exactly one worker, and has received something."""
    everywhere = [key for keys in sessions(found).values() for key in keys]
    return sorted(everywhere) == sorted(wanted) and all(
        session["frames"] > 0
        for status in found.values()
        for session in status["source"]["sessions"]
    )


def every_trade_once(data: Path) -> None:
    """No trade is stored twice, and exactly what is missing is disclosed as a gap."""
    ids = trades_by_symbol(data)
    assert set(ids) == set(SYMBOLS)
    disclosed = gap_events(data)
    for symbol, found in ids.items():
        assert len(found) == len(set(found)), f"{symbol}: a trade is stored twice"
        missing = set(range(found[0], found[-1] + 1)) - set(found)
        gaps = {i for first, last in disclosed.get(symbol, []) for i in range(first, last + 1)}
        assert gaps == missing, symbol
