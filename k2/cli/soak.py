"""`k2 soak`: hours of a simulated market on a K2 of its own, with faults, and what they did to it.

Every sample is one JSON line; the last line is the summary. At the end each trade id the market
brought is in the lake once, or disclosed as a gap: else the exit status is 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import aiohttp
import click
import numpy as np
import psutil

from k2.cli.bench.machine import machine
from k2.cli.demo.client import ExchangeClient, WorkerClient, free_port
from k2.cli.demo.processes import Child
from k2.cli.own import own_lake, own_worker
from k2.cli.signals import stop_on_signals
from k2.cli.soak_proof import prove
from k2.cli.up import worker_command
from k2.errors import K2Error
from k2.settings import load_settings

_START_S: Final = 120.0
_DRAIN_S: Final = 600.0
_STOP_S: Final = 30.0
#: No fault in the last seconds: what a dead connection missed could not show as a gap.
_CALM_S: Final = 20.0
#: Share of the samples that are warming up: caches fill, tails reach their age.
_WARM: Final = 0.2
_SYMBOLS: Final = "BTCUSDT,ETHUSDT,SOLUSDT,XRPUSDT,DOGEUSDT,PEPEUSDT"
#: What an exchange does now and then, in turn.
FAULTS: Final[tuple[dict[str, Any], ...]] = (
    {"kind": "disconnect"},
    {"kind": "duplicate", "n": 500},
    {"kind": "garbage"},
    {"kind": "resend", "n": 2_000},
    {"kind": "reorder", "n": 50},
    {"kind": "disconnect", "abort": True},
    {"kind": "stall", "seconds": 3.0, "pongs": True},
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: seconds, messages a second, seconds between samples and between faults."""

    seconds: float
    rate: float
    sample_s: float
    fault_s: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the worker. `query_ms`: one `/v1/trades`, asked here and now.

    `tail_mb`: of `rss_mb`, the hot rows, which grow up to K2_QUERY_TAIL_MAX_MB and no further.
    """

    at_s: float
    rss_mb: float
    arrow_mb: float
    tail_mb: float
    threads: int
    open_files: int
    lag: int
    level: int
    fresh_p50_ms: float | None
    fresh_p99_ms: float | None
    query_ms: float
    query_status: int
    frames: int
    rows: int
    lake_files: int
    disk_mb: float
    gaps_opened: int
    duplicates: int
    dead_letters: int
    reconnects: int
    faults: int


#: What should not grow with time, and the unit of its slope.
_STEADY: Final = {
    "rss_mb": "MB/h",
    "threads": "1/h",
    "open_files": "1/h",
    "lag": "records/h",
    "fresh_p99_ms": "ms/h",
    "query_ms": "ms/h",
    "lake_files": "files/h",
}


def slope(samples: Sequence[Sample], name: str) -> dict[str, Any]:
    """Least squares over the samples after the warm-up, per hour, and its 95 % interval."""
    chosen = samples[int(len(samples) * _WARM) :]
    pairs = [(one.at_s / 3_600, getattr(one, name)) for one in chosen]
    known = np.array([pair for pair in pairs if pair[1] is not None], np.float64)
    if len(known) < 3:
        return {"mean": None, "per_hour": None, "interval": None}
    hours, values = known.T
    spread = ((hours - hours.mean()) ** 2).sum()
    found = ((hours - hours.mean()) * (values - values.mean())).sum() / spread
    rest = values - values.mean() - found * (hours - hours.mean())
    error = float(np.sqrt((rest**2).sum() / (len(known) - 2) / spread))
    return {
        "mean": round(float(values.mean()), 2),
        "per_hour": round(float(found), 3),
        "interval": [round(float(found) - 1.96 * error, 3), round(float(found) + 1.96 * error, 3)],
    }


def summary(samples: Sequence[Sample], proof: dict[str, int], plan: Plan) -> dict[str, Any]:
    """The object a soak ends with."""
    return {
        "plan": asdict(plan),
        "samples": len(samples),
        "slopes": {name: {**slope(samples, name), "unit": unit} for name, unit in _STEADY.items()},
        "peak_rss_mb": max(one.rss_mb for one in samples),
        "queries_failed": sum(one.query_status != 200 for one in samples),
        "faults": samples[-1].faults,
        "proof": proof,
        "sound": not (proof["undisclosed"] or proof["doubled"]),
        "machine": machine(),
    }


class Soak:
    """One run over a directory."""

    def __init__(self, plan: Plan, directory: Path, keep: Path | None) -> None:
        self._plan = plan
        self._directory = directory
        self._data = directory / "data"
        self._file = keep
        self._ports = free_port(), free_port()
        self._exchange = Child("exchange", self._market(), directory / "exchange.log")
        self._worker = Child("worker", worker_command(), directory / "worker.log")
        self._stop = asyncio.Event()
        self._faults = 0

    async def run(self) -> dict[str, Any]:
        """The summary. Raises `K2Error` when a process ends or what was sent is never stored."""
        stop_on_signals(self._stop)
        settings = load_settings()
        key = settings.api.key.get_secret_value()
        api, market = (f"http://127.0.0.1:{port}" for port in self._ports)
        async with aiohttp.ClientSession(headers={"X-API-Key": key}) as http:
            self._http = http
            self._client = WorkerClient(http, api, key)
            self._sender = ExchangeClient(http, market)
            try:
                await self._exchange.start()
                await self._sender.wait_up(self._exchange, _START_S)
                await self._worker.start(self._environment())
                await self._client.wait_ready(self._worker, _START_S)
                samples = await self._watch()
                played = (await self._sender.status())["played"]
                await self._exchange.stop(_STOP_S)
                await self._drained()
                if status := await self._worker.stop(_STOP_S):
                    raise K2Error(f"the worker ended with {status}:\n{self._worker.log_tail()}")
            finally:
                await self._worker.stop(_STOP_S)
                await self._exchange.stop(_STOP_S)
        proof = await asyncio.to_thread(prove, own_lake(settings, self._data), played)
        return summary(samples, proof, self._plan)

    async def _watch(self) -> list[Sample]:
        process, samples = psutil.Process(self._worker.pid), list[Sample]()
        faults, began_s = cycle(FAULTS), time.monotonic()
        next_fault_s = self._plan.fault_s
        with self._written() as write:
            while not self._stop.is_set():
                at_s = time.monotonic() - began_s
                if at_s >= self._plan.seconds and len(samples) >= 3:
                    break
                if next_fault_s <= at_s < self._plan.seconds - _CALM_S:
                    next_fault_s += self._plan.fault_s
                    await self._break(next(faults))
                samples.append(await self._sample(process, at_s))
                write(json.dumps(asdict(samples[-1])))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), self._plan.sample_s)
        return samples

    @contextlib.contextmanager
    def _written(self) -> Iterator[Any]:
        if self._file is None:
            yield lambda line: print(line, flush=True)
            return
        with self._file.open("w", encoding="utf-8") as out:
            yield lambda line: print(line, file=out, flush=True)

    async def _sample(self, process: psutil.Process, at_s: float) -> Sample:
        self._worker.check()
        self._exchange.check()
        status = await self._client.status()
        began_s = time.perf_counter()
        async with self._http.get(f"{self._client.base}/v1/trades?limit=100") as answer:
            await answer.read()
        query_ms = (time.perf_counter() - began_s) * 1_000
        validate, fresh = status["validate"], status["freshness_ms"]
        tables = status["query"]["tables"].values()
        disk = await asyncio.to_thread(_bytes_below, self._data)
        return Sample(
            at_s=round(at_s, 1),
            rss_mb=status["memory"]["rss_mb"],
            arrow_mb=status["memory"]["arrow_mb"],
            tail_mb=status["memory"]["tail_mb"],
            threads=process.num_threads(),
            open_files=process.num_fds(),
            lag=status["lag"],
            level=status["level"],
            fresh_p50_ms=fresh["p50"],
            fresh_p99_ms=fresh["p99"],
            query_ms=round(query_ms, 1),
            query_status=answer.status,
            frames=status["source"]["frames"],
            rows=status["sink"]["rows"],
            lake_files=sum(table.get("newest", {}).get("files", 0) for table in tables),
            disk_mb=round(disk / 2**20, 1),
            gaps_opened=validate["gaps_opened"],
            duplicates=validate["duplicates"],
            dead_letters=validate["dead_letters"] + status["source"]["refused"],
            reconnects=sum(sum(one["reconnects"].values()) for one in status["source"]["sessions"]),
            faults=self._faults,
        )

    async def _break(self, fault: dict[str, Any]) -> None:
        async with self._http.post(f"{self._sender.base}/k2/fault", json=fault) as answer:
            if answer.status != 200:
                raise K2Error(f"the exchange refused the fault {fault}: {await answer.text()}")
        self._faults += 1

    async def _drained(self) -> None:
        until_s = time.monotonic() + _DRAIN_S
        while time.monotonic() < until_s:
            self._worker.check()
            status = await self._client.status()
            if status["drained"] and not status["validate"]["shed_pending"]:
                return
            await asyncio.sleep(0.5)
        raise K2Error(f"not all was stored {_DRAIN_S:.0f} s after the market closed")

    def _market(self) -> list[str]:
        command = [sys.executable, "-P", "-m", "k2.cli", "exchange", "simulate"]
        command += ["--port", str(self._ports[1]), "--symbols", _SYMBOLS, "--sends", "1"]
        return [*command, "--rate", str(self._plan.rate)]

    def _environment(self) -> dict[str, str]:
        server = f"ws://127.0.0.1:{self._ports[1]}"
        own = own_worker(self._data, self._ports[0], server, _SYMBOLS.split(","))
        return {**own, "K2_BINANCE_RECONNECT_INITIAL_S": "0.2"}


def _bytes_below(directory: Path) -> int:
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):  # deleted since it was listed
                total += (Path(folder) / name).lstat().st_size
    return total


@click.command(short_help="Hours of a simulated market with faults: is everything flat?")
@click.option("--hours", default=1.0, show_default=True, help="How long; a fraction will do.")
@click.option("--rate", default=5_000.0, show_default=True, help="Messages a second.")
@click.option("--every", "sample_s", default=10.0, show_default=True, help="Seconds per sample.")
@click.option("--fault-every", "fault_s", default=60.0, show_default=True, help="Seconds.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File for the samples; default: standard output.",
)
def soak(hours: float, rate: float, sample_s: float, fault_s: float, out: Path | None) -> None:
    """Run a simulated market on a K2 of its own, with a fault now and then.

    Prints a JSON line for each sample and, at the end, a summary with the slope per hour of memory,
    latency, files and lag, and what became of every trade id. Ctrl-C ends it early, in order.
    """
    for name, value in (("--hours", hours), ("--rate", rate), ("--every", sample_s)):
        if not value > 0:
            raise click.BadParameter(f"{value}; allowed: above 0", param_hint=name)
    plan = Plan(hours * 3_600, rate, sample_s, fault_s)
    with tempfile.TemporaryDirectory(prefix="k2-soak-") as name:
        found = asyncio.run(Soak(plan, Path(name), out).run())
    print(json.dumps(found), flush=True)
    if not found["sound"]:
        raise SystemExit(1)
