"""Workers, exchange and services under test; a supervisor restarts what stopped itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
from faust.types import TP

from k2 import faultpoints
from k2.chaos.progress import Progress
from k2.chaos.services import Services, open_local_catalog
from k2.cli.demo.client import ExchangeClient, WorkerClient, free_port
from k2.cli.demo.processes import Child, ChildFailed
from k2.dlq.log import KafkaLog
from k2.errors import K2Error
from k2.faultpoints import Point
from k2.settings import LOCAL_API_KEY, Kafka
from k2.steps.publish import partition_of
from k2.topics import MARKET_TOPICS

#: A machine that does other things besides may take this long.
_START_S = 240.0
_POLL_S = 0.05


class ChaosError(K2Error):
    """The cluster did not do in time what it must."""

    code = "chaos"


@dataclass
class Worker:
    """One worker process. `wanted`: the supervisor starts it again when it ends."""

    name: str
    directory: Path
    port: int = field(default_factory=free_port)
    child: Child | None = None
    wanted: bool = False
    starts: int = 0
    own_stops: list[str] = field(default_factory=list)
    pids: set[int] = field(default_factory=set)

    @property
    def log_file(self) -> Path:
        return self.directory / f"{self.name}.log"

    @property
    def alive(self) -> bool:
        return self.child is not None and self.child.running

    @property
    def pid(self) -> int:
        assert self.child is not None
        return self.child.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it is there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def log_tail(self) -> str:
        return self.child.log_tail() if self.child is not None else ""


@dataclass
class Options:
    """What is put under test."""

    directory: Path
    embedded: bool = False
    workers: int = 2
    brokers: int = 3
    captures: Sequence[Path] = ()
    symbols: Sequence[str] = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT")
    speed: float = 0.5
    seed: int = 1
    data_dir: Path | None = None

    @property
    def partitions(self) -> int:
        """Of every market topic."""
        return 1 if self.embedded else 16


class Cluster:
    """Everything that runs; leave the context to stop it."""

    def __init__(self, options: Options) -> None:
        self.options = options
        count = 1 if options.embedded else options.workers
        self.workers = [
            Worker(f"worker-{number}", options.directory) for number in range(1, count + 1)
        ]
        self.services = Services(options.directory / "services")
        self.points = options.directory / "points"
        self.exchange: Child | None = None
        self._exchange_port = free_port()
        self.measured: dict[str, list[float]] = {}
        #: Bars missed; a slow machine misses them without breaking a promise.
        self.late: list[str] = []
        self._stack = AsyncExitStack()
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def embedded(self) -> bool:
        return self.options.embedded

    @property
    def data_dir(self) -> Path:
        """Of the one worker with an embedded log."""
        return self.options.data_dir or self.options.directory / "data"

    async def __aenter__(self) -> Self:
        self.options.directory.mkdir(parents=True, exist_ok=True)
        # PostgreSQL runs under an account of its own, which must get there.
        self.options.directory.chmod(0o755)
        self.points.mkdir(exist_ok=True)
        self.http = await self._stack.enter_async_context(aiohttp.ClientSession())
        try:
            await self._start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        for worker in self.workers:
            worker.wanted = False
            if worker.alive:
                worker.signal(signal.SIGCONT)
                worker.signal(signal.SIGKILL)
            if worker.child is not None:
                await worker.child.stop(5)
        if self.exchange is not None:
            await self.exchange.stop(5)
        await self._stack.aclose()

    async def _start(self) -> None:
        if self.embedded:
            self.log: KafkaLog | None = None
        else:
            await self.services.start(self._stack, self.options.brokers)
            kafka = Kafka.model_construct(
                bootstrap_servers=self.services.environment["K2_KAFKA_BOOTSTRAP_SERVERS"]
            )
            self.log = KafkaLog(kafka)
            self._stack.push_async_callback(self.log.close)
        await self._start_exchange()
        for worker in self.workers:
            await self.start_worker(worker, wait=False)
        self._supervisor = asyncio.create_task(self._supervise())
        for worker in self.workers:
            await self.ready(worker)
        self.progress = Progress(
            self.services.open_catalog()
            if not self.embedded
            else open_local_catalog(self.data_dir),
            self.active,
            self.log,
        )

    # -- the exchange ------------------------------------------------------------------------

    async def _start_exchange(self) -> None:
        options = self.options
        if options.captures:
            arguments = ["serve", "--loop", "--by-clock", "--speed", str(options.speed)]
            for capture in options.captures:
                arguments += ["--capture", str(capture)]
            arguments += ["--also", ",".join(options.symbols)]
        else:
            arguments = ["simulate", "--symbols", ",".join(options.symbols)]
            arguments += ["--rate", str(500 * options.speed), "--seed", str(options.seed)]
        command = [sys.executable, "-P", "-m", "k2.cli", "exchange", *arguments]
        command += ["--port", str(self._exchange_port)]
        self.exchange = Child("exchange", command, options.directory / "exchange.log")
        await self.exchange.start()
        await self.exchange_client.wait_up(self.exchange, 30)

    @property
    def exchange_client(self) -> ExchangeClient:
        return ExchangeClient(self.http, f"http://127.0.0.1:{self._exchange_port}")

    async def exchange_fault(self, kind: str, **parameters: object) -> None:
        """Have the exchange misbehave."""
        url = f"http://127.0.0.1:{self._exchange_port}/k2/fault"
        async with self.http.post(url, json={"kind": kind, **parameters}) as answer:
            if answer.status != 200:
                raise ChaosError(await answer.text())

    async def stop_exchange(self) -> dict[str, Any]:
        """End the feed; what it sent."""
        assert self.exchange is not None
        status = await self.exchange_client.status()
        await self.exchange.stop(10)
        return status

    # -- workers -----------------------------------------------------------------------------

    def _environment(self, worker: Worker) -> dict[str, str]:
        data = self.data_dir if self.embedded else self.options.directory / f"{worker.name}-data"
        return {
            "K2_DATA_DIR": str(data),
            "K2_API_PORT": str(worker.port),
            "K2_KAFKA_PARTITIONS": str(self.options.partitions),
            "K2_LOG_FORMAT": "json",
            "K2_BINANCE_URL": f"ws://127.0.0.1:{self._exchange_port}",
            "K2_BINANCE_FAILOVER_URLS": "",
            "K2_BINANCE_SYMBOLS": ",".join(self.options.symbols),
            "K2_BINANCE_SYMBOLS_PER_SESSION": "1",
            "K2_BINANCE_RECONNECT_INITIAL_S": "0.2",
            # What was missed is to be found as gaps, not mended.
            "K2_BINANCE_BACKFILL": "false",
            "K2_BINANCE_RECONNECT_MAX_S": "2",
            "K2_SINK_INTERVAL_S": "1",
            "K2_DEGRADATION_EXEMPT": "true",
            "K2_QUERY_TAIL_MAX_MB": "64",
            faultpoints.VARIABLE: str(self.points),
            **self.services.environment,
        }

    async def start_worker(self, worker: Worker, *, wait: bool = True) -> None:
        """Start its process; with `wait` until it serves."""
        command = [sys.executable, "-P", "-m", "faust", "-A", "k2.app", "worker", "-l", "info"]
        worker.child = Child(worker.name, command, worker.log_file)
        await worker.child.start(self._environment(worker))
        worker.wanted = True
        worker.starts += 1
        worker.pids.add(worker.pid)
        if wait:
            await self.ready(worker)

    async def ready(self, worker: Worker, timeout_s: float = _START_S) -> None:
        """Return when it serves; the supervisor may restart it meanwhile."""
        deadline = time.monotonic() + timeout_s
        client = self.client(worker)
        while time.monotonic() < deadline:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with asyncio.timeout(2.0):
                    if worker.alive and await client.ready():
                        return
            await asyncio.sleep(_POLL_S)
        raise ChaosError(
            f"{worker.name} was not ready within {timeout_s:.0f} s: {worker.log_tail()}"
        )

    def client(self, worker: Worker) -> WorkerClient:
        return WorkerClient(self.http, f"http://127.0.0.1:{worker.port}", LOCAL_API_KEY)

    async def stop_worker(self, worker: Worker) -> tuple[int, float]:
        """Stop it in good order: its status, and the seconds it took."""
        worker.wanted = False
        began_s = time.monotonic()
        assert worker.child is not None
        status = await worker.child.stop(60)
        return status, time.monotonic() - began_s

    async def kill_worker(self, worker: Worker) -> None:
        """kill -9; it stays away until started again."""
        worker.wanted = False
        worker.signal(signal.SIGKILL)
        assert worker.child is not None
        await worker.child.ended(5)

    async def _supervise(self) -> None:
        """Start again what ended by itself, as an init system would, with a growing delay."""
        while True:
            for worker in self.workers:
                if worker.wanted and not worker.alive and worker.child is not None:
                    worker.own_stops.append(worker.child.reason() or "killed")
                    with contextlib.suppress(ChildFailed):
                        await self.start_worker(worker, wait=False)
            await asyncio.sleep(0.5)

    # -- faults at points --------------------------------------------------------------------

    async def strike(self, point: Point, action: str, timeout_s: float = 40.0) -> Worker:
        """Arm a point and wait until a worker was struck there."""
        faultpoints.arm(self.points, point, action)
        return await self.struck(point, timeout_s)

    async def struck(self, point: Point, timeout_s: float = 40.0) -> Worker:
        """The worker that was struck at the armed point."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            pid = faultpoints.taken_by(self.points)
            victim = next((worker for worker in self.workers if pid in worker.pids), None)
            if victim is not None:
                faultpoints.disarm(self.points)
                return victim
            await asyncio.sleep(0.01)
        faultpoints.disarm(self.points)
        raise ChaosError(f"no worker came to {point} within {timeout_s:.0f} s")

    # -- what is alive -----------------------------------------------------------------------

    @property
    def active(self) -> list[TP]:
        """Partitions of the logs of record that have traffic."""
        most, symbols = self.options.partitions, self.options.symbols
        partitions = {partition_of(symbol.encode(), most) for symbol in symbols}
        return [TP(topic.log, number) for topic in MARKET_TOPICS for number in sorted(partitions)]

    async def settle(self) -> None:
        """Every worker serves."""
        for worker in self.workers:
            if worker.wanted:
                await self.ready(worker)

    def note(self, what: str, seconds: float) -> None:
        """Remember a measured time for the report."""
        self.measured.setdefault(what, []).append(seconds)

    async def mend(self) -> None:
        """After a scenario that went wrong: nothing is armed, stopped or away."""
        faultpoints.disarm(self.points)
        for proxy in (self.services.registry, self.services.catalog, self.services.store):
            if proxy is not None:
                proxy.behave()
        for worker in self.workers:
            if worker.alive:
                worker.signal(signal.SIGCONT)
            elif not worker.wanted:
                await self.start_worker(worker, wait=False)

    async def drained(self, timeout_s: float) -> None:
        """Everything the log has is in the lake. Raises `ChaosError`."""
        deadline = time.monotonic() + timeout_s
        while waits := await self._waits():
            if time.monotonic() >= deadline:
                tails = "\n".join(f"{w.name} logged last: {w.log_tail()}" for w in self.workers)
                raise ChaosError(f"not drained within {timeout_s:.0f} s: {waits}\n{tails}")
            await asyncio.sleep(0.5)

    async def _waits(self) -> str:
        """Which worker is not drained, and what it says of itself; empty: all are."""
        for worker in self.workers:
            try:
                async with asyncio.timeout(5.0):
                    status = await self.client(worker).status()
            except (aiohttp.ClientError, TimeoutError) as exc:
                return f"{worker.name} does not answer ({exc!r})"
            if not status["drained"]:
                return f"{worker.name}: {_unfinished(status)}"
        return ""


def _unfinished(status: dict[str, Any]) -> dict[str, Any]:
    """What of a worker's status may keep it from being drained."""
    source, validate, sink = status["source"], status["validate"], status["sink"]
    return {
        "ready": status["ready"],
        "lag": status["lag"],
        "queued": source["queued"],
        "source_in_flight": source["in_flight"],
        "validate_in_flight": validate["in_flight"],
        "pending_rows": sink["pending_rows"],
        "shed_pending": validate["shed_pending"],
    }
