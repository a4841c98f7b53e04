"""Two exchanges on one worker: whether anything is lost, and whether memory stays flat."""

from __future__ import annotations

import asyncio
import json as jsonlib
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import click

from k2.cli.bench.machine import machine
from k2.cli.demo.client import ExchangeClient, WorkerClient, free_port
from k2.cli.demo.processes import Child
from k2.cli.own import own_worker
from k2.cli.up import worker_command
from k2.errors import K2Error
from k2.settings import load_settings

_START_S: Final = 120.0
_DRAIN_S: Final = 300.0
#: Most samples of a run, but no more than one a second.
_SAMPLES: Final = 120
#: Fewer make no line.
_FEWEST: Final = 5
_SYMBOLS: Final = "BTCUSDT,ETHUSDT,SOLUSDT,XRPUSDT"
_PRODUCTS: Final = "BTC-USDT,ETH-USDT,SOL-USDT,XRP-USDT"


@dataclass(frozen=True, slots=True)
class Sample:
    """The worker at one moment. `at_s`: seconds since the first frame; memory in MB.

    `arrow_mb`: what Arrow holds, the tail's hot rows (`tail_mb`) among it; `stored`: trades and
    quotes in the lake.
    """

    at_s: float
    rss_mb: float
    arrow_mb: float
    tail_mb: float
    frames: int
    stored: int
    queued: int


@dataclass(frozen=True, slots=True)
class Result:
    """`lost`: trades the exchanges sent that are not in the lake.

    `behind_s`: from the last frame sent until everything was stored. `growth_mb_per_min`: slope of
    resident memory over the second half of the sending.
    """

    frames_per_s: int
    seconds: float
    trades_sent: int
    trades_stored: int
    lost: int
    gaps_opened: int
    behind_s: float
    peak_rss_mb: float
    growth_mb_per_min: float
    machine: str
    samples: list[Sample]


async def measure(rate: float, seconds: float) -> Result:
    """Half the frames from each of two simulated exchanges, then until all is stored."""
    with tempfile.TemporaryDirectory(prefix="k2-bench-") as name:
        directory, ports = Path(name), (free_port(), free_port())
        exchanges = [
            Child(f"{exchange} simulator", _simulate(exchange, port, rate / 2, seconds),
                  directory / f"{exchange}.log")
            for exchange, port in zip(("binance", "coinbase"), ports, strict=True)
        ]  # fmt: skip
        worker = Child("worker", worker_command(), directory / "worker.log")
        api_port = free_port()
        try:
            async with aiohttp.ClientSession() as http:
                clients = [ExchangeClient(http, f"http://127.0.0.1:{port}") for port in ports]
                for exchange, client in zip(exchanges, clients, strict=True):
                    await exchange.start()
                    await client.wait_up(exchange, _START_S)
                await worker.start(_environment(directory, api_port, ports))
                key = load_settings().api.key.get_secret_value()
                api = WorkerClient(http, f"http://127.0.0.1:{api_port}", key)
                await api.wait_ready(worker, _START_S)
                return await _watch(worker, api, clients, rate, seconds)
        finally:
            for child in (worker, *exchanges):
                await child.stop(30)


def _simulate(exchange: str, port: int, rate: float, seconds: float) -> list[str]:
    command = [sys.executable, "-P", "-m", "k2.cli", "exchange", "simulate"]
    command += ["--exchange", exchange, "--port", str(port), "--symbols", _SYMBOLS]
    return [*command, "--rate", str(rate), "--frames", str(int(rate * seconds))]


def _environment(directory: Path, port: int, ports: tuple[int, int]) -> dict[str, str]:
    return {
        **own_worker(directory / "data", port, f"ws://127.0.0.1:{ports[0]}", _SYMBOLS.split(",")),
        "K2_EXCHANGES": "binance,coinbase",
        "K2_COINBASE_URL": f"ws://127.0.0.1:{ports[1]}",
        "K2_COINBASE_SYMBOLS": _PRODUCTS,
        "K2_DEGRADATION_EXEMPT": "true",
        "K2_COINBASE_BACKFILL": "false",
    }


async def _watch(
    worker: Child,
    api: WorkerClient,
    clients: list[ExchangeClient],
    rate: float,
    seconds: float,
) -> Result:
    loop = asyncio.get_running_loop()
    began_s, ended_s, samples = loop.time(), 0.0, list[Sample]()
    every_s = max(1.0, seconds / _SAMPLES)
    while loop.time() < began_s + seconds * 3 + _DRAIN_S:
        worker.check()
        sent = [await client.status() for client in clients]
        status = await api.status()
        if loop.time() - began_s >= len(samples) * every_s:
            samples.append(_sample(status, loop.time() - began_s))
        if all(one["finished"] for one in sent):
            ended_s = ended_s or loop.time()
            if _stored(status, sent):
                samples.append(_sample(status, loop.time() - began_s))
                return _result(sent, status, samples, ended_s - began_s, loop.time() - ended_s)
        await asyncio.sleep(0.25)
    raise K2Error(f"not stored after {loop.time() - began_s:.0f} s at {rate:.0f} frames a second")


def _sample(status: dict[str, Any], at_s: float) -> Sample:
    memory = status["memory"]
    return Sample(
        round(at_s, 1),
        memory["rss_mb"],
        memory["arrow_mb"],
        memory["tail_mb"],
        status["source"]["frames"],
        status["lake"]["trades"] + status["lake"]["quotes"],
        status["source"]["queued"],
    )


def _result(
    sent: list[dict[str, Any]],
    status: dict[str, Any],
    samples: list[Sample],
    seconds: float,
    behind_s: float,
) -> Result:
    trades = sum(one["trades_sent"] for one in sent)
    stored = status["lake"]["trades"]
    return Result(
        round(sum(one["frames_sent"] for one in sent) / seconds),
        round(seconds, 1),
        trades,
        stored,
        trades - stored,
        status["validate"]["gaps_opened"],
        round(behind_s, 1),
        max(sample.rss_mb for sample in samples),
        growth([sample for sample in samples if seconds / 2 <= sample.at_s <= seconds]),
        machine(),
        samples,
    )


def growth(samples: Sequence[Sample]) -> float:
    """MB a minute of the line through the samples; 0 when there are too few."""
    if len(samples) < _FEWEST:
        return 0.0
    slope, _ = statistics.linear_regression(
        [sample.at_s for sample in samples], [sample.rss_mb for sample in samples]
    )
    return round(slope * 60, 2)


def _stored(status: dict[str, Any], sent: list[dict[str, Any]]) -> bool:
    records = sum(one["trades_sent"] + one["quotes_sent"] for one in sent)
    source = status["source"]
    # A session that ended and came back leaves frames out: what came is all there will be.
    whole = source["trades"] + source["quotes"] >= records or any(
        session["reconnects"] for session in source["sessions"]
    )
    judged = status["validate"]["records"] >= source["trades"] + source["quotes"]
    return bool(whole and judged and source["queued"] == 0 and status["drained"])


def _some(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """About a dozen of the samples, the last among them."""
    step = max(1, len(samples) // 12)
    return [*samples[:-1:step], samples[-1]]


@click.command(short_help="Two exchanges on one worker: loss and memory.")
@click.option("--rate", default=20_000.0, show_default=True, help="Frames a second, both together.")
@click.option("--seconds", default=60.0, show_default=True, help="How long to send.")
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object.")
def feeds(rate: float, seconds: float, as_json: bool) -> None:
    """Simulated Binance and Coinbase on one worker with the embedded log.

    Tells what was lost, how far behind it ended, and the worker's memory along the way. The
    simulators run on the same machine and take their share of it.
    """
    result = asdict(asyncio.run(measure(rate, seconds)))
    for name, value in result.items():
        if name != "samples":
            print(f"{name:<18} {value}")
    print(f"{'second':>8} {'RSS MB':>8} {'Arrow':>8} {'tail':>8} {'frames':>12} {'stored':>12}")
    for one in _some(result["samples"]):
        print(
            f"{one['at_s']:>8} {one['rss_mb']:>8} {one['arrow_mb']:>8} {one['tail_mb']:>8} "
            f"{one['frames']:>12,} {one['stored']:>12,}"
        )
    if as_json:
        print(jsonlib.dumps(result))
