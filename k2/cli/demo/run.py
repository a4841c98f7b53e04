"""The demo's course: exchange, worker, screen or wait, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.live import Live

from k2.cli.demo.client import ExchangeClient, WorkerClient, answers, free_port
from k2.cli.demo.processes import Child, ChildFailed
from k2.cli.demo.report import Drain, final_report, stored_rows
from k2.cli.demo.screen import render
from k2.cli.up import worker_command
from k2.errors import CaptureError
from k2.exchange.capture import read_capture, symbols_of
from k2.settings import Settings, load_settings

_LIVE_PROBE_S = 3.0
_START_S = 60.0
_STOP_S = 20.0
_END_S = 2.0


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for."""

    captures: tuple[Path, ...]
    speed: str
    until_drained: bool
    by_clock: bool
    data_dir: Path | None
    as_json: bool
    source: str
    symbols: tuple[str, ...]
    rate: int


class Demo:
    """One run of the demo."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._settings = load_settings()
        self._data_dir = (options.data_dir or self._settings.core.data_dir).resolve()
        self._port = free_port(self._settings.api.port)
        self._base = f"http://127.0.0.1:{self._port}"
        self._console = Console(stderr=options.as_json)
        self._stop = asyncio.Event()
        self._children: list[Child] = []

    async def run(self) -> None:
        """Run until drained or stopped; raises `K2Error` with the reason when that fails."""
        self._check_captures()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, self._stop.set)
        began = time.monotonic()
        async with aiohttp.ClientSession() as http, self._exchange(http) as exchange:
            source, url = await self._choose(exchange)
            async with self._worker(url) as worker:
                client = WorkerClient(http, self._base, _key(self._settings))
                await client.wait_ready(worker, _START_S)
                self._say(source, time.monotonic() - began)
                try:
                    status = await self._follow(client, worker, exchange, source)
                    gaps = await client.open_gaps()
                except aiohttp.ClientError:
                    await self._look_for_the_dead()
                    raise
            # After the worker has stopped: what it still held is stored now.
            stored = await asyncio.to_thread(stored_rows, self._lake_settings())
            if self._options.as_json:
                sent = await exchange.status() if exchange else None
                print(json.dumps(final_report(status, sent, stored, gaps)), flush=True)
            else:
                self._console.print(
                    f"Stored in {self._data_dir}: {stored['trades']:,} trades, "
                    f"{stored['quotes']:,} quotes."
                )

    async def _look_for_the_dead(self) -> None:
        """Raise `ChildFailed` for the process that does not answer because it has ended."""
        for child in self._children:
            if await child.ended(_END_S):
                child.check()

    def _check_captures(self) -> None:
        for capture in self._options.captures:
            if not capture.is_file():
                raise CaptureError(
                    f"--capture {capture}: no such file; give a recorded capture (plain or gzip)"
                )
        self._symbols()

    async def _choose(self, exchange: ExchangeClient | None) -> tuple[str, str]:
        if exchange is not None:
            name = "replay" if self._options.captures else "built-in exchange simulator"
            return name, exchange.base.replace("http://", "ws://")
        return "live Binance", self._settings.binance.url

    @asynccontextmanager
    async def _exchange(self, http: aiohttp.ClientSession) -> AsyncIterator[ExchangeClient | None]:
        """The exchange server when the feed is not live."""
        if await self._live():
            yield None
            return
        port = free_port()
        child = Child("exchange server", self._exchange_command(port), self._log("exchange"))
        self._children.append(child)
        await child.start()
        try:
            client = ExchangeClient(http, f"http://127.0.0.1:{port}")
            await client.wait_up(child, _START_S)
            yield client
        finally:
            await child.stop(_STOP_S)

    async def _live(self) -> bool:
        options = self._options
        if options.captures or options.source == "simulator":
            return False
        if options.source == "live":
            return True
        return await answers(f"{self._settings.binance.url}/ws/btcusdt@trade", _LIVE_PROBE_S)

    def _exchange_command(self, port: int) -> list[str]:
        options = self._options
        command = [sys.executable, "-P", "-m", "k2.cli", "exchange"]
        if not options.captures:
            symbols = ",".join(self._symbols())
            command += ["simulate", "--port", str(port), "--symbols", symbols]
            # Ids go on where an earlier run of the demo cannot have been yet: to the platform it is
            # one exchange that it missed for a while.
            first_id = int(time.time() * options.rate)
            return [*command, "--rate", str(options.rate), "--first-id", str(first_id)]
        command += ["serve", "--port", str(port), "--speed", options.speed]
        for capture in options.captures:
            command += ["--capture", str(capture.resolve())]
        return [*command, "--by-clock"] if options.by_clock else command

    def _symbols(self) -> tuple[str, ...]:
        """Those asked for, else those of the captures, else the setting's."""
        if not self._options.symbols and self._options.captures:
            return self._of_captures()
        return self._options.symbols or self._settings.binance.symbols

    @functools.cache  # noqa: B019 - one demo per process
    def _of_captures(self) -> tuple[str, ...]:
        frames = itertools.chain.from_iterable(map(read_capture, self._options.captures))
        symbols = symbols_of(frames)
        if not symbols:
            names = ", ".join(map(str, self._options.captures))
            raise CaptureError(f"--capture {names}: no Binance stream in it; nothing to replay")
        return symbols

    @asynccontextmanager
    async def _worker(self, url: str) -> AsyncIterator[Child]:
        child = Child("worker", worker_command(), self._log("worker"))
        self._children.append(child)
        environment = {
            "K2_DATA_DIR": str(self._data_dir),
            "K2_API_PORT": str(self._port),
            "K2_BINANCE_URL": url,
            "K2_BINANCE_SYMBOLS": ",".join(self._symbols()),
        }
        if self._options.captures:
            # A replay at full speed is a load: there is nothing to protect from it.
            environment["K2_DEGRADATION_EXEMPT"] = "true"
        if not url.startswith("wss://"):
            environment["K2_BINANCE_FAILOVER_URLS"] = ""
        await child.start(environment)
        try:
            yield child
            child.check()
        finally:
            status = await child.stop(_STOP_S)
        if status:
            raise ChildFailed(
                f"the worker ended with status {status} when it was asked to stop; what it held is "
                f"in the log and will be stored at the next start; the end of its log:\n"
                f"{child.log_tail()}",
                status=status,
            )

    def _lake_settings(self) -> Settings:
        core = self._settings.core.model_copy(update={"data_dir": self._data_dir})
        return self._settings.model_copy(update={"core": core})

    def _log(self, name: str) -> Path:
        return self._data_dir / "logs" / f"{name}.log"

    def _say(self, source: str, seconds: float) -> None:
        key = _key(self._settings)
        self._console.print(f"K2 is up after {seconds:.1f} s. Source: {source}.")
        self._console.print(f"  data   {self._data_dir}")
        self._console.print(f"  API    {self._base}/   health {self._base}/health")
        curl = f"curl -s -H 'X-API-Key: {key}' '{self._base}/v1/trades?limit=3'"
        self._console.print(f"  try    {curl}", soft_wrap=True)

    async def _follow(
        self, client: WorkerClient, worker: Child, exchange: ExchangeClient | None, source: str
    ) -> dict[str, Any]:
        if self._options.until_drained:
            assert exchange is not None
            return await Drain(client, worker, exchange, self._stop).wait()
        if self._options.as_json or not self._console.is_terminal:
            return await self._wait_quietly(client, worker)
        return await self._show(client, worker, source)

    async def _wait_quietly(self, client: WorkerClient, worker: Child) -> dict[str, Any]:
        while not self._stop.is_set():
            worker.check()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), 0.5)
        return await client.status()

    async def _show(self, client: WorkerClient, worker: Child, source: str) -> dict[str, Any]:
        status = await client.status()
        key = _key(self._settings)
        with Live(console=self._console, refresh_per_second=4, transient=False) as live:
            while not self._stop.is_set():
                worker.check()
                status = await client.status()
                live.update(render(status, source, self._base, key))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), 0.5)
        self._console.print("Stopping: what was received is being stored …")
        return status


def _key(settings: Settings) -> str:
    return settings.api.key.get_secret_value()
