"""The demo's course: feed, worker, screen or wait, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp
from rich.console import Console
from rich.live import Live

from k2.ask import reachable
from k2.cli.demo.client import ExchangeClient, WorkerClient, free_port
from k2.cli.demo.feed import Options, Recorded, choose, exchange_command, recorded
from k2.cli.demo.processes import Child, ChildFailed
from k2.cli.demo.report import Drain, final_report, stored_rows
from k2.cli.demo.screen import Place, render
from k2.cli.signals import stop_on_signals
from k2.cli.up import worker_command
from k2.data_kind import SIMULATED, claim, data_dir
from k2.exchange.capture import check_capture
from k2.setting_names import unknown_variables
from k2.settings import ROLES, Settings, load_settings

_START_S = 60.0
_STOP_S = 20.0
_END_S = 2.0
#: The status of a command that was interrupted before it had begun its work.
_INTERRUPTED = 130
#: Made-up trades stay on this machine, whatever log and lake the surroundings name.
_EMBEDDED: Final = {
    "K2_KAFKA_BOOTSTRAP_SERVERS": "",
    "K2_KAFKA_SCHEMA_REGISTRY_URL": "",
    "K2_ICEBERG_CATALOG_URI": "",
    "K2_ICEBERG_WAREHOUSE": "",
}

T = TypeVar("T")


class Stopped(Exception):
    """Ctrl-C came while the demo was starting."""


class Demo:
    """One run of the demo."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._settings = load_settings()
        self._console = Console(stderr=options.as_json)
        self._stop = asyncio.Event()
        self._children: list[Child] = []

    async def run(self) -> int:
        """Run until drained or stopped; the exit status. Raises `K2Error` when that fails."""
        stop_on_signals(self._stop)
        try:
            await self._prepare()
            await self._run()
        except Stopped:
            self._console.print("Stopped before K2 was up.")
            return _INTERRUPTED
        return 0

    async def _prepare(self) -> None:
        """Decide on symbols, feed, data directory and port; nothing is started yet."""
        for unknown in unknown_variables():
            self._console.print(f"Note: {unknown.message}.", highlight=False)
        self._recorded = await self._unless_stopped(self._choose_symbols())
        self._symbols = self._recorded.symbols
        settings, options = self._settings, self._options
        self._feed = await self._unless_stopped(choose(options, settings.binance))
        if self._feed.why:
            self._console.print(self._feed.why, highlight=False, soft_wrap=True)
        self._data_dir = data_dir(options.data_dir, settings.core.data_dir, self._feed.market)
        claim(self._data_dir, self._feed.market)
        self._lake = self._lake_settings()
        api = settings.api
        self._port = free_port(api.port, api.host)
        self._base = f"http://{reachable(api.host)}:{self._port}"
        if api.port not in (0, self._port):
            self._console.print(
                f"Port {api.port} (K2_API_PORT) is taken; the API is on port {self._port}.",
                highlight=False,
            )

    async def _run(self) -> None:
        began = time.monotonic()
        async with aiohttp.ClientSession() as http, self._exchange(http) as exchange:
            url = self._url(exchange)
            async with self._worker(url) as worker:
                client = WorkerClient(http, self._base, _key(self._settings))
                await self._unless_stopped(client.wait_ready(worker, _START_S))
                self._say(time.monotonic() - began)
                try:
                    status = await self._follow(client, worker, exchange)
                    gaps = await client.open_gaps()
                except aiohttp.ClientError:
                    await self._look_for_the_dead()
                    raise
            # After the worker has stopped: what it still held is stored now.
            stored = await asyncio.to_thread(stored_rows, self._lake)
            if self._options.as_json:
                sent = await exchange.status() if exchange else None
                print(json.dumps(final_report(status, sent, stored, gaps)), flush=True)
            else:
                self._console.print(
                    f"Stored in {_from_here(self._data_dir)}: {stored['trades']:,} trades, "
                    f"{stored['quotes']:,} quotes.",
                    soft_wrap=True,
                )

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`. Raises `Stopped` when Ctrl-C comes first."""
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Stopped
            return task.result()
        finally:
            for pending in (task, stop):
                pending.cancel()
            await asyncio.gather(task, stop, return_exceptions=True)

    async def _choose_symbols(self) -> Recorded:
        """Those asked for, else those of the captures, else the setting's; and of which feed."""
        options = self._options
        if options.symbols:
            for capture in options.captures:
                check_capture(capture)
            return Recorded("binance", options.symbols)
        if options.captures:
            return await asyncio.to_thread(recorded, options.captures, self._stop)
        return Recorded("binance", self._settings.binance.symbols)

    async def _look_for_the_dead(self) -> None:
        """Raise `ChildFailed` for the process that does not answer because it has ended."""
        for child in self._children:
            if await child.ended(_END_S):
                child.check()

    def _url(self, exchange: ExchangeClient | None) -> str:
        """Where the worker's session connects."""
        return exchange.base.replace("http://", "ws://") if exchange else self._settings.binance.url

    @asynccontextmanager
    async def _exchange(self, http: aiohttp.ClientSession) -> AsyncIterator[ExchangeClient | None]:
        """The exchange server when the feed is not live."""
        if self._feed.live:
            yield None
            return
        port = free_port()
        command = exchange_command(self._options, self._symbols, port, self._data_dir)
        child = Child("exchange server", command, self._log("exchange"))
        self._children.append(child)
        await child.start()
        try:
            client = ExchangeClient(http, f"http://127.0.0.1:{port}")
            await self._unless_stopped(client.wait_up(child, _START_S))
            yield client
        finally:
            await child.stop(_STOP_S)

    @asynccontextmanager
    async def _worker(self, url: str) -> AsyncIterator[Child]:
        child = Child("worker", worker_command(), self._log("worker"))
        self._children.append(child)
        await child.start(self._environment(url))
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

    def _environment(self, url: str) -> dict[str, str]:
        feed, prefix = self._recorded.feed, f"K2_{self._recorded.feed.upper()}_"
        environment = {
            "K2_DATA_DIR": str(self._data_dir),
            "K2_API_PORT": str(self._port),
            "K2_ROLES": ",".join(ROLES),
            f"{prefix}ENABLED": "true",
            f"{prefix}URL": url,
            f"{prefix}SYMBOLS": ",".join(self._symbols),
            **{f"{prefix}{name}": value for name, value in self._recorded.settings.items()},
        }
        if self._options.captures:
            # A replay at full speed is a load: there is nothing to protect from it.
            environment["K2_DEGRADATION_EXEMPT"] = "true"
        if not self._feed.live:
            # The one feed there is, whatever others the surroundings name.
            environment |= {"K2_EXCHANGES": feed, f"{prefix}FAILOVER_URLS": ""}
        return environment | (_EMBEDDED if self._feed.market == SIMULATED else {})

    def _lake_settings(self) -> Settings:
        """The worker's, as far as they say where the lake is."""
        settings = self._settings
        changes: dict[str, Any] = {
            "core": settings.core.model_copy(update={"data_dir": self._data_dir})
        }
        if self._feed.market == SIMULATED:
            empty = {"catalog_uri": "", "warehouse": ""}
            changes["iceberg"] = settings.iceberg.model_copy(update=empty)
            if not settings.embedded:
                self._console.print(
                    "K2_KAFKA_BOOTSTRAP_SERVERS is left aside: simulated trades stay in a log of "
                    "their own."
                )
        return settings.model_copy(update=changes)

    def _log(self, name: str) -> Path:
        return self._data_dir / "logs" / f"{name}.log"

    def _say(self, seconds: float) -> None:
        say, place = self._console.print, self._place()
        say(f"K2 is up after {seconds:.1f} s. Source: {self._feed.name}.", highlight=False)
        kind = "  (simulated trades, kept apart)" if self._feed.market == SIMULATED else ""
        say(f"  data   {_from_here(self._data_dir)}{kind}", highlight=False, soft_wrap=True)
        if self._shows_screen:
            return
        say(f"  API    {place.base}/   health {place.base}/health", highlight=False)
        say(f"  try    {place.curl}", highlight=False, soft_wrap=True)

    def _place(self) -> Place:
        return Place(self._feed.name, self._base, _key(self._settings))

    @property
    def _shows_screen(self) -> bool:
        options = self._options
        return self._console.is_terminal and not (options.as_json or options.until_drained)

    async def _follow(
        self, client: WorkerClient, worker: Child, exchange: ExchangeClient | None
    ) -> dict[str, Any]:
        if self._options.until_drained:
            assert exchange is not None
            return await Drain(client, worker, exchange, self._stop).wait()
        if self._shows_screen:
            return await self._show(client, worker)
        return await self._wait_quietly(client, worker)

    async def _wait_quietly(self, client: WorkerClient, worker: Child) -> dict[str, Any]:
        while not self._stop.is_set():
            worker.check()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), 0.5)
        return await client.status()

    async def _show(self, client: WorkerClient, worker: Child) -> dict[str, Any]:
        status = await client.status()
        with Live(console=self._console, refresh_per_second=4, transient=False) as live:
            while not self._stop.is_set():
                worker.check()
                status = await client.status()
                live.update(render(status, self._place()))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), 0.5)
        self._console.print("Stopping: what was received is being stored …")
        return status


def _from_here(path: Path) -> Path:
    """`path`, relative when it is below the working directory."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _key(settings: Settings) -> str:
    return settings.api.key.get_secret_value()
