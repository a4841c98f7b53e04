"""A K2 of its own under a market that is turned up and down: what overload is shown on.

The worker is the production one on the embedded log, held to one processor where the system can do
that, so that a market simulated on the same machine can overload it.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import aiohttp
import numpy as np

from k2.cli.demo.client import WorkerClient, free_port
from k2.cli.demo.count import Count, counts
from k2.cli.demo.processes import Child, ChildFailed
from k2.cli.demo.tide import Tide
from k2.cli.own import own_lake, own_worker
from k2.cli.up import worker_command
from k2.exchange.server import ExchangeServer
from k2.lake.catalog import open_catalog
from k2.settings import ROLES, load_settings

#: Two of tier 1, one of tier 2, two of tier 3; the busiest first.
SYMBOLS: Final = ("BTCUSDT", "ETHUSDT", "ZECUSDT", "ANKRUSDT", "WINUSDT")
_START_S: Final = 120.0
_STOP_S: Final = 30.0
_DATA: Final = "/v1/trades?limit=1&symbol=BTCUSDT"


@dataclass(frozen=True, slots=True)
class Reply:
    """What the API said to a query of data."""

    status: int
    ms: float
    retry_after_s: str = ""

    def __str__(self) -> str:
        wait = f", Retry-After {self.retry_after_s} s" if self.retry_after_s else ""
        return f"HTTP {self.status} in {self.ms:.0f} ms{wait}"


class Rehearsal:
    """Worker and market over one directory; use it as a context."""

    def __init__(
        self,
        directory: Path,
        environment: Mapping[str, str],
        rate: float,
        symbols: tuple[str, ...] = SYMBOLS,
    ) -> None:
        self._symbols = symbols
        self.tide = Tide(symbols, rate, first_id=time.time_ns() // 1_000_000)
        self.server = ExchangeServer(self.tide, sends=0, keep_ids=True)
        self.worker = Child("worker", worker_command(), directory / "worker.log")
        self._directory = directory
        self._environment = dict(environment)
        settings = load_settings()
        self._key = settings.api.key.get_secret_value()
        self._port = free_port()
        self.base = f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(headers={"X-API-Key": self._key})
        self.client = WorkerClient(self._http, self.base, self._key)
        try:
            await self.server.start()
            await self.worker.start(self._variables())
            _one_processor(self.worker.pid)
            await self.client.wait_ready(self.worker, _START_S)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.worker.stop(_STOP_S)
        await self.server.stop()
        await self._http.close()

    async def status(self) -> dict[str, Any]:
        """`/v1/status`. Raises `ChildFailed` when the worker has ended."""
        self.worker.check()
        return await self.client.status()

    async def get(self, path: str) -> Any:
        """`data` of an answer."""
        async with self._http.get(self.base + path) as answer:
            answer.raise_for_status()
            return (await answer.json())["data"]

    async def ask(self) -> Reply:
        """Ask for data, as a user would."""
        began_s = time.perf_counter()
        async with self._http.get(self.base + _DATA) as answer:
            await answer.read()
            wait = answer.headers.get("Retry-After", "")
        return Reply(answer.status, (time.perf_counter() - began_s) * 1_000, wait)

    async def age_ms(self, path: str) -> tuple[int, float | None]:
        """HTTP status, and how long ago the newest record of an answer was received."""
        async with self._http.get(self.base + path) as answer:
            body = await answer.json()
        if answer.status != 200 or not body["data"]:
            return answer.status, None
        received = dt.datetime.fromisoformat(body["data"][0]["receive_timestamp"])
        return 200, (dt.datetime.now(dt.UTC) - received).total_seconds() * 1_000

    async def shed(self) -> dict[str, int]:
        """Records put off so far, by tier."""
        async with self._http.get(self.base + "/metrics") as answer:
            lines = (await answer.text()).splitlines()
        found = Counter[str]()
        for line in lines:
            if line.startswith("k2_messages_shed_total{"):
                tier = line.partition('symbol_tier="')[2].partition('"')[0]
                found[tier] += int(float(line.rpartition(" ")[2]))
        return dict(found)

    async def stored(self) -> None:
        """End the market, and return once all of it is stored."""
        self.tide.ebb()
        while True:
            status = await self.status()
            taken = status["source"]["frames"] >= self.server.sent.count()
            if self.server.finished and taken and status["drained"]:
                return
            await asyncio.sleep(0.25)

    async def finish(self) -> None:
        """End the market, wait until all of it is stored, and stop the worker in good order."""
        await self.stored()
        if code := await self.worker.stop(_STOP_S):
            raise ChildFailed(f"the worker ended with status {code}:\n{self.worker.log_tail()}")

    def counts(self) -> dict[str, Count]:
        """What was sent against what any program finds in the lake; blocking."""
        catalog = open_catalog(own_lake(load_settings(), self._directory / "data"))
        sent = {
            name: np.array(stream.ids, np.int64)
            for name, stream in self.server.sent.streams.items()
        }
        return counts(sent, catalog)

    def _variables(self) -> dict[str, str]:
        return {
            **own_worker(self._directory / "data", self._port, self.server.url, self._symbols),
            "K2_ROLES": ",".join(ROLES),
            "K2_DEGRADATION_TIERS_FILE": "",
            **self._environment,
        }


def _one_processor(pid: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        with suppress(OSError):  # it has ended, or a sandbox forbids it: then it has them all
            os.sched_setaffinity(pid, {min(os.sched_getaffinity(0))})
