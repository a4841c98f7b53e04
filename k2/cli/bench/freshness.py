"""How long after the exchange sent a trade `/v1/trades` answers with it.

The exchange server replays a capture at a given speed and keeps the time at which it sent each
trade; a client polls the API. Both run on this machine, so there is one clock.
"""

from __future__ import annotations

import asyncio
import json as jsonlib
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import click
import numpy as np

from k2.cli.bench.machine import machine
from k2.cli.demo.client import ExchangeClient, WorkerClient, free_port
from k2.cli.demo.processes import Child
from k2.cli.own import own_worker
from k2.cli.up import worker_command
from k2.errors import CaptureError, K2Error
from k2.settings import load_settings


@dataclass(frozen=True, slots=True)
class Result:
    """Milliseconds from sending to being in an answer; `poll_ms` of it is the asking."""

    samples: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    polls: int
    poll_p50_ms: float
    poll_p99_ms: float
    speed: str
    poll_every_ms: int
    machine: str


async def measure(capture: Path, speed: str, seconds: float, poll_ms: int) -> Result:
    """Replay `capture` for at most `seconds` and poll; raises `K2Error` without enough samples."""
    with tempfile.TemporaryDirectory(prefix="k2-bench-") as name:
        directory, api, port = Path(name), free_port(), free_port()
        exchange = Child(
            "exchange server",
            _exchange_command(capture, speed, port),
            directory / "exchange.log",
        )
        worker = Child("worker", worker_command(), directory / "worker.log")
        key = load_settings().api.key.get_secret_value()
        async with aiohttp.ClientSession() as http:
            try:
                await exchange.start()
                sender = ExchangeClient(http, f"http://127.0.0.1:{port}")
                await sender.wait_up(exchange, 30)
                await worker.start(_environment(directory, api, port))
                client = WorkerClient(http, f"http://127.0.0.1:{api}", key)
                # Polling begins before the worker is ready: the first trades count as well.
                seen, polls = await _poll(http, client, sender, key, worker, seconds, poll_ms)
                async with http.get(f"{sender.base}/k2/sends?stream=btcusdt@trade") as answer:
                    sent = dict((await answer.json())["sends"])
            finally:
                await worker.stop(20)
                await exchange.stop(10)
    ages = np.array([(seen[i] - sent[i]) / 1e6 for i in seen if i in sent])
    if len(ages) < 1_000:
        raise K2Error(f"{len(ages)} samples are too few for a p99; give --seconds more")
    p50, p90, p99 = np.percentile(ages, (50, 90, 99))
    poll50, poll99 = np.percentile(np.array(polls), (50, 99))
    return Result(
        len(ages),
        round(float(p50), 1),
        round(float(p90), 1),
        round(float(p99), 1),
        round(float(ages.max()), 1),
        len(polls),
        round(float(poll50), 1),
        round(float(poll99), 1),
        speed,
        poll_ms,
        machine(),
    )


def _exchange_command(capture: Path, speed: str, port: int) -> list[str]:
    command = [sys.executable, "-m", "k2.cli", "exchange", "serve", "--capture", str(capture)]
    return [*command, "--speed", speed, "--port", str(port), "--sends", "1000000"]


def _environment(directory: Path, api: int, port: int) -> dict[str, str]:
    return {
        **own_worker(directory / "data", api, f"ws://127.0.0.1:{port}", ["BTCUSDT"]),
        "K2_LOG_LEVEL": "WARNING",
    }


async def _poll(
    http: aiohttp.ClientSession,
    client: WorkerClient,
    sender: ExchangeClient,
    key: str,
    worker: Child,
    seconds: float,
    poll_ms: int,
) -> tuple[dict[int, int], list[float]]:
    """When each trade id was first in an answer (wall clock, ns), and how long answers took."""
    await client.wait_ready(worker, 60)
    url = f"{client.base}/v1/trades?symbol=BTCUSDT&fields=trade_id&limit=500"
    seen: dict[int, int] = {}
    polls: list[float] = []
    loop = asyncio.get_running_loop()
    ends_s = loop.time() + seconds
    while loop.time() < ends_s:
        began_s = loop.time()
        async with http.get(url, headers={"X-API-Key": key}) as answer:
            rows: list[dict[str, Any]] = (await answer.json())["data"]
        now_ns = time.time_ns()
        for row in rows:
            seen.setdefault(int(row["trade_id"]), now_ns)
        polls.append((loop.time() - began_s) * 1_000)
        if len(polls) % 50 == 0 and (await sender.status())["finished"]:
            break
        await asyncio.sleep(max(0.0, poll_ms / 1_000 - (loop.time() - began_s)))
    return seen, polls


@click.command(short_help="How old a trade is when /v1/trades answers with it.")
@click.option("--capture", required=True, type=click.Path(path_type=Path), help="What to replay.")
@click.option("--speed", default="20", show_default=True, help="Times real time.")
@click.option("--seconds", default=60.0, show_default=True, help="How long at most.")
@click.option("--poll-ms", default=20, show_default=True, help="Milliseconds between polls.")
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object.")
def freshness(capture: Path, speed: str, seconds: float, poll_ms: int, as_json: bool) -> None:
    """How old a trade is when `/v1/trades` answers with it: embedded log, one worker."""
    if not capture.is_file():
        raise CaptureError(f"--capture {capture}: no such file")
    result = asdict(asyncio.run(measure(capture, speed, seconds, poll_ms)))
    if as_json:
        click.echo(jsonlib.dumps(result))
        return
    for name, value in result.items():
        click.echo(f"{name:>14}: {value}")
