"""A worker and an exchange server as real processes, driven from a test."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
from pyiceberg.catalog import Catalog, load_catalog

from k2.candles.rebuild import Report, compare, pair
from k2.candles.versions import VERSIONED, newest
from k2.cli.demo.client import ExchangeClient, WorkerClient, free_port
from k2.cli.demo.processes import Child
from k2.codec.registry import FileRegistry
from k2.codecs import Codecs
from k2.lake.reader import LakeReader
from k2.pipeline.open_gaps import open_ranges
from k2.settings import LOCAL_API_KEY
from k2.topics import BINANCE_TRADES, MARKET_TOPICS, MarketTopic
from k2.transport.local.store import LogStore
from tests.local_log.logs import values

PYTHON = sys.executable


async def run_demo(data_dir: Path, *captures: Path, **options: str) -> dict[str, Any]:
    """`k2 demo --capture … --until-drained --json`; its final object. Fails with its output."""
    command = [PYTHON, "-m", "k2.cli", "demo", "--until-drained", "--json"]
    command += ["--data-dir", str(data_dir), "--speed", options.get("speed", "max")]
    for capture in captures:
        command += ["--capture", str(capture)]
    environment = {**os.environ, "K2_API_PORT": str(free_port()), "K2_BINANCE_SYMBOLS": "BTCUSDT"}
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, f"status {process.returncode}\n{out.decode()}\n{err.decode()}"
    return json.loads(out.decode().strip().splitlines()[-1])


@dataclass
class Stack:
    """One worker, and perhaps an exchange server, over one data directory.

    Several may share a directory when the log is Kafka; each has a `name` of its own.
    """

    directory: Path
    environment: dict[str, str] = field(default_factory=dict)
    name: str = "worker"
    worker: Child | None = None
    exchange: Child | None = None
    port: int = field(default_factory=free_port)
    exchange_port: int = field(default_factory=free_port)
    http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self.http = aiohttp.ClientSession()
        return self

    async def __aexit__(self, *_: object) -> None:
        for child in (self.worker, self.exchange):
            if child is not None:
                await child.stop(20)
        assert self.http is not None
        await self.http.close()

    @property
    def log_file(self) -> Path:
        """What the worker printed."""
        return self.directory / f"{self.name}.log"

    @property
    def client(self) -> WorkerClient:
        assert self.http is not None
        return WorkerClient(self.http, f"http://127.0.0.1:{self.port}", LOCAL_API_KEY)

    @property
    def exchange_client(self) -> ExchangeClient:
        assert self.http is not None
        return ExchangeClient(self.http, f"http://127.0.0.1:{self.exchange_port}")

    async def start_exchange(self, *arguments: str) -> None:
        command = [PYTHON, "-m", "k2.cli", "exchange", *arguments]
        command += ["--port", str(self.exchange_port)]
        self.exchange = Child("exchange", command, self.directory / "exchange.log")
        await self.exchange.start()
        await self.exchange_client.wait_up(self.exchange, 30)

    async def start_worker(self, **environment: str) -> None:
        """Start `faust -A k2.app worker` and wait until it is ready."""
        command = [PYTHON, "-m", "faust", "-A", "k2.app", "worker", "-l", "info"]
        self.worker = Child("worker", command, self.log_file)
        await self.worker.start(
            {
                "K2_DATA_DIR": str(self.directory / "data"),
                "K2_API_PORT": str(self.port),
                "K2_BINANCE_URL": f"ws://127.0.0.1:{self.exchange_port}",
                "K2_BINANCE_FAILOVER_URLS": "",
                "K2_BINANCE_SYMBOLS": "BTCUSDT",
                "K2_BINANCE_RECONNECT_INITIAL_S": "0.1",
                # Gaps are looked at; tests of back-fill turn it on.
                "K2_BINANCE_BACKFILL": "false",
                "K2_DEGRADATION_EXEMPT": "true",
                **self.environment,
                **environment,
            }
        )
        await self.client.wait_ready(self.worker, 60)

    async def fault(self, kind: str, **parameters: object) -> None:
        """Have the exchange misbehave; see `k2.exchange.faults`."""
        assert self.http is not None
        url = f"http://127.0.0.1:{self.exchange_port}/k2/fault"
        async with self.http.post(url, json={"kind": kind, **parameters}) as answer:
            assert answer.status == 200, await answer.text()

    async def kill_worker(self) -> None:
        assert self.worker is not None
        os.kill(self.worker.pid, signal.SIGKILL)
        await self.worker.stop(5)
        self.worker = None

    async def stop_worker(self) -> int:
        assert self.worker is not None
        status, self.worker = await self.worker.stop(30), None
        return status

    async def until(
        self, what: str, test: Callable[[dict[str, Any]], bool], timeout_s: float = 60
    ) -> dict[str, Any]:
        """Poll `/v1/status` until `test` holds; the status then."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        status: dict[str, Any] = {}
        while loop.time() < deadline:
            if self.worker is not None:
                self.worker.check()
            status = await self.client.status()
            if test(status):
                return status
            await asyncio.sleep(0.05)
        log = self.worker.log_tail(40) if self.worker else ""
        raise AssertionError(f"{what}: not within {timeout_s} s; status {status}\n{log}")

    async def command(self, *arguments: str) -> dict[str, Any]:
        """`k2 ARGUMENTS` to its end; the JSON object it ends with. Fails with its output."""
        process = await asyncio.create_subprocess_exec(
            *(PYTHON, "-m", "k2.cli", *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **self.environment},
        )
        out, err = await process.communicate()
        assert process.returncode == 0, f"{process.returncode}\n{out.decode()}\n{err.decode()}"
        return json.loads(out.decode().strip().splitlines()[-1])

    async def stop_exchange(self) -> None:
        assert self.exchange is not None
        await self.exchange.stop(20)
        self.exchange = None

    async def request(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        """(HTTP status, JSON body) of a request; with the key unless `headers` are given."""
        assert self.http is not None
        options.setdefault("headers", {"X-API-Key": LOCAL_API_KEY})
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self.http.request(method, url, **options) as answer:
            return answer.status, await answer.json()

    async def get(self, path: str, **params: str) -> tuple[int, Any]:
        """(HTTP status, body) of a GET with the key."""
        return await self.request("GET", path, params=params)

    async def metrics(self) -> dict[str, float]:
        """Samples of `/metrics` by name and labels, as the text has them."""
        assert self.http is not None
        async with self.http.get(f"http://127.0.0.1:{self.port}/metrics") as answer:
            text = await answer.text()
        samples = (line.rsplit(" ", 1) for line in text.splitlines() if line[:1] not in ("#", ""))
        return {name: float(value) for name, value in samples}

    async def sql(self, sql: str) -> list[dict[str, Any]]:
        assert self.http is not None
        async with self.http.post(
            f"http://127.0.0.1:{self.port}/v1/sql",
            json={"sql": sql},
            headers={"X-API-Key": LOCAL_API_KEY},
        ) as answer:
            body = await answer.json()
            assert answer.status == 200, body
            return body["data"]


class Storage:
    """The directory of the data files; away, a file is in its place and nothing can be written."""

    def __init__(self, data: Path) -> None:
        self._here, self._away = data / "warehouse", data / "warehouse.away"

    def leave(self) -> None:
        self._here.rename(self._away)
        self._here.touch()

    def come_back(self) -> None:
        self._here.unlink()
        self._away.rename(self._here)


def log_values(data_dir: Path, topic: str) -> list[bytes]:
    """Values of a topic of the embedded log, partition by partition; no worker may run."""
    with LogStore(data_dir / "log") as store:
        partitions = store.topic(topic).partitions
        return [value for log in partitions for value in values(log) if value is not None]


def dead_letters(data_dir: Path, topic: MarketTopic = BINANCE_TRADES) -> list[dict[str, Any]]:
    """What was refused, by the source or by validation."""
    codecs = Codecs.open(FileRegistry(data_dir / "registry"), MARKET_TOPICS)
    return codecs.of(topic.dlq).decode(log_values(data_dir, topic.dlq)).batch.to_pylist()


def catalog(data_dir: Path) -> Catalog:
    """The lake as another program opens it."""
    return load_catalog("k2", type="sql", uri=f"sqlite:///{data_dir / 'catalog.db'}")


def trade_ids(data_dir: Path) -> list[int]:
    table = catalog(data_dir).load_table("market_data.trades")
    rows = table.scan(selected_fields=("trade_id",)).to_arrow()
    return sorted(int(value) for value in rows["trade_id"].to_pylist())


def trades_by_symbol(data_dir: Path) -> dict[str, list[int]]:
    """Ids of every stored trade by symbol, rising."""
    table = catalog(data_dir).load_table("market_data.trades")
    rows = table.scan(selected_fields=("symbol", "trade_id")).to_arrow()
    found: dict[str, list[int]] = {}
    for symbol, ident in zip(rows["symbol"].to_pylist(), rows["trade_id"].to_pylist(), strict=True):
        found.setdefault(symbol, []).append(int(ident))
    return {symbol: sorted(ids) for symbol, ids in found.items()}


def candles_compared(data_dir: Path) -> Report:
    """Every candle of the lake against its trades; no worker may run."""
    reader = LakeReader(catalog(data_dir))
    return compare(reader, pair(reader), frozenset())


def newest_candles(data_dir: Path, symbol: str, timeframe: str) -> list[dict[str, Any]]:
    """The newest versions of a symbol's windows, in order."""
    rows = catalog(data_dir).load_table("market_data.candles").scan().to_arrow()
    found = newest(rows.select(VERSIONED.names)).to_pylist()
    return [one for one in found if (one["symbol"], one["timeframe"]) == (symbol, timeframe)]


def quote_ids(data_dir: Path) -> list[int]:
    table = catalog(data_dir).load_table("market_data.quotes")
    rows = table.scan(selected_fields=("quote_id",)).to_arrow()
    return sorted(int(value) for value in rows["quote_id"].to_pylist())


def gap_events(data_dir: Path) -> dict[str, list[tuple[int, int]]]:
    """Open gap ranges of trades (first missing, last missing) by symbol."""
    table = catalog(data_dir).load_table("market_data.gaps")
    order = [(name, "ascending") for name in ("log_partition", "platform_sequence")]
    rows = table.scan().to_arrow().sort_by(order).to_pylist()
    ranges = open_ranges(row for row in rows if row["data_type"] == "trades")
    found: dict[str, list[tuple[int, int]]] = {}
    for (*_, symbol), spans in ranges.items():
        found.setdefault(symbol, []).extend(spans)
    return found


def gap_ranges(data_dir: Path) -> list[tuple[int, int]]:
    """The same of all symbols together."""
    return sorted(span for spans in gap_events(data_dir).values() for span in spans)
