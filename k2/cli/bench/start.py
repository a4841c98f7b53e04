"""How long from `k2 demo` to the first trade in an answer, and how much memory it all takes."""

from __future__ import annotations

import asyncio
import json as jsonlib
import os
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
import click
import psutil

from k2.cli.bench.machine import machine
from k2.cli.demo.client import free_port
from k2.errors import K2Error
from k2.settings import load_settings

_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Result:
    """Seconds from the command; memory of demo, exchange and worker together."""

    first_answer_s: float
    first_trade_s: float
    peak_rss_mb: float
    stop_s: float
    machine: str


async def measure(seconds: float) -> Result:
    """Run the demo on the simulator for `seconds` after its first trade, then interrupt it."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="k2-bench-") as name:
        began_s = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "k2.cli", "demo", "--source", "simulator"),
            *("--data-dir", name, "--json"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, "K2_API_PORT": str(port)},
        )
        watch = asyncio.create_task(_peak(psutil.Process(process.pid)))
        try:
            answer_s, trade_s = await _first(port, began_s, Path(name))
            await asyncio.sleep(seconds)
        finally:
            stopping_s = time.monotonic()
            process.send_signal(signal.SIGINT)
            status = await process.wait()
            watch.cancel()
        if status:
            raise K2Error(f"the demo ended with status {status}")
        return Result(
            round(answer_s, 2),
            round(trade_s, 2),
            round(_seen[0] / 2**20, 1),
            round(time.monotonic() - stopping_s, 2),
            machine(),
        )


#: Highest sum of resident memory so far, bytes.
_seen = [0]


async def _peak(root: psutil.Process) -> None:
    while True:
        total = 0
        for process in [root, *root.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        _seen[0] = max(_seen[0], total)
        await asyncio.sleep(0.1)


async def _first(port: int, began_s: float, directory: Path) -> tuple[float, float]:
    """Seconds until the API answers at all, and until it answers with a trade."""
    headers = {"X-API-Key": load_settings().api.key.get_secret_value()}
    url, answered_s = f"http://127.0.0.1:{port}/v1/trades?limit=1", None
    async with aiohttp.ClientSession(headers=headers) as http:
        while time.monotonic() - began_s < _LIMIT_S:
            try:
                async with http.get(url) as answer:
                    rows = (await answer.json()).get("data") if answer.status == 200 else None
            except aiohttp.ClientError:
                rows = None
            else:
                answered_s = answered_s or time.monotonic() - began_s
            if rows:
                assert answered_s is not None
                return answered_s, time.monotonic() - began_s
            await asyncio.sleep(0.05)
    raise K2Error(f"no trade within {_LIMIT_S:.0f} s; see the logs in {directory}")


@click.command(short_help="How long `k2 demo` takes to start and stop; its memory.")
@click.option(
    "--seconds", default=20.0, show_default=True, help="How long to run after the first trade."
)
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object.")
def start(seconds: float, as_json: bool) -> None:
    """Time from `k2 demo` to the first trade in an answer and from Ctrl-C to the end; peak memory.

    It runs the demo on the simulator, in a directory that is removed afterwards.
    """
    result = asdict(asyncio.run(measure(seconds)))
    if as_json:
        click.echo(jsonlib.dumps(result))
        return
    for name, value in result.items():
        click.echo(f"{name:>15}: {value}")
