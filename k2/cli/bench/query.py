"""`k2 bench query`: how long answers take over HTTP while the same worker takes in a feed.

A real worker on a lake of a month, the exchange server before it. Warm and cold are measured apart;
before each cold kind the worker is started anew and the lake's files leave the system's cache.
"""

from __future__ import annotations

import asyncio
import json as jsonlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import click

from k2.cli.bench.machine import additions_ms, machine
from k2.cli.bench.query_lake import NEXT_ID, Kept
from k2.cli.bench.query_load import KINDS, MANY, Client, Kind, Questions, Seen
from k2.cli.demo.client import ExchangeClient, WorkerClient, free_port
from k2.cli.demo.processes import Child
from k2.cli.own import own_worker
from k2.cli.up import worker_command
from k2.errors import K2Error
from k2.settings import load_settings

_START_S: Final = 120.0
#: Before anything is measured the worker has kept up for so long …
_CALM_S: Final = 5
#: … and has so long to get there.
_KEEPS_UP_S: Final = 240.0
CLIENTS: Final = 100
BAR_PER_S: Final = 300


@dataclass(frozen=True)
class Run:
    """What is measured: requests of each kind, and seconds of all clients at once."""

    lake: Kept
    requests: int
    rate: float
    seconds: float
    cold: bool = True


async def measure(run: Run) -> dict[str, Any]:
    """All kinds warm, then all clients, then each kind cold; raises `K2Error` when one fails."""
    questions = Questions(run.lake.shape)
    found: dict[str, Any] = {"warm": {}, "cold": {}}
    async with _started(run) as client:
        before = await Seen.now(client.get)
        for kind in KINDS:
            found["warm"][kind.name] = await _warm(client, questions, kind, run)
        found["clients"] = await _together(client, questions, run)
        found |= {"worker": (await Seen.now(client.get)).since(before)}
        found["memory_mb"] = (await client.get("/v1/status"))["data"]["memory"]["rss_mb"]
    for kind in KINDS if run.cold else ():
        async with _started(run) as client:
            spent = await client.one_by_one(questions.cold(kind), run.requests)
            found["cold"][kind.name] = _told(f"cold: {kind.name}", spent.figures(kind.bar))
    return found


async def _warm(client: Client, questions: Questions, kind: Kind, run: Run) -> dict[str, Any]:
    urls = questions.warm(kind)
    await client.one_by_one(iter(urls), len(urls))
    again = (questions.chance.choice(urls) for _ in range(run.requests))
    spent = await client.one_by_one(again, run.requests)
    return _told(f"warm: {kind.name}", spent.figures(kind.bar))


async def _together(client: Client, questions: Questions, run: Run) -> dict[str, Any]:
    """A hundred clients ask the simple question, and then all kinds in turn."""
    found = {}
    for name, kinds in (("simple filter", KINDS[:1]), ("all kinds", KINDS)):
        urls = [url for kind in kinds for url in questions.warm(kind)]
        before = await Seen.now(client.get)
        spent = await client.together(urls, CLIENTS, run.seconds)
        figures = spent.figures()
        figures["answers_per_s"] = round(len(spent.ms) / spent.seconds)
        figures["bar_per_s"] = BAR_PER_S
        figures["met"] = figures["answers_per_s"] >= BAR_PER_S and not spent.refused
        figures |= (await Seen.now(client.get)).since(before)
        found[name] = _told(f"{CLIENTS} clients: {name}", figures)
    return found


def _told(what: str, figures: dict[str, Any]) -> dict[str, Any]:
    """`figures` with how fast the machine is beside the feed right after, once they are printed."""
    figures = {**figures, "million_additions_ms": additions_ms()}
    rate = f"  {figures['answers_per_s']} answers/s" if "answers_per_s" in figures else ""
    met = {True: "  met", False: "  MISSED"}.get(figures.get("met", ""), "")
    click.echo(
        f"{what:<40} n={figures['requests']:<6} p50 {figures['p50_ms']:>7} ms  "
        f"p99 {figures['p99_ms']:>7} ms{rate}{met}  ({figures['million_additions_ms']} ms)"
    )
    return figures


@asynccontextmanager
async def _started(run: Run) -> AsyncIterator[Client]:
    """A worker that has just begun on the lake as it was built, and its feed."""
    run.lake.restore()
    _forget(run.lake)
    names = ",".join(run.lake.shape.names)
    exchange_port, port = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="k2-bench-query-") as logs:
        command = [sys.executable, "-P", "-m", "k2.cli", "exchange", "simulate"]
        command += ["--symbols", names, "--rate", str(run.rate), "--port", str(exchange_port)]
        command += ["--first-id", str(NEXT_ID)]
        exchange = Child("exchange server", command, Path(logs) / "exchange.log")
        worker = Child("worker", worker_command(), Path(logs) / "worker.log")
        key = load_settings().api.key.get_secret_value()
        connector = aiohttp.TCPConnector(limit=CLIENTS)
        try:
            async with aiohttp.ClientSession(connector=connector) as http:
                await exchange.start()
                sender = ExchangeClient(http, f"http://127.0.0.1:{exchange_port}")
                await sender.wait_up(exchange, _START_S)
                await worker.start(_environment(run, names, port, exchange_port))
                base = f"http://127.0.0.1:{port}"
                await WorkerClient(http, base, key).wait_ready(worker, _START_S)
                client = Client(http, base, key)
                try:
                    await _flowing(client, run.rate)
                    yield client
                except aiohttp.ClientError:
                    # Of a worker that has ended, its log says more.
                    worker.check()
                    raise
                worker.check()
        finally:
            for child in (worker, exchange):
                await child.stop(30)


async def _flowing(client: Client, rate: float) -> None:
    """Until the worker keeps up with the feed: at first it looks up in the lake which ids it has.

    Raises `K2Error` when it does not.
    """
    calm = 0
    for _ in range(int(_KEEPS_UP_S)):
        status = (await client.get("/v1/status"))["data"]
        judged = status["source"]["trades"] and status["validate"]["records"]
        calm = calm + 1 if judged and status["lag"] <= rate else 0
        if calm >= _CALM_S:
            return
        await asyncio.sleep(1)
    raise K2Error(
        f"the worker did not keep up with {rate:.0f} messages/s within {_KEEPS_UP_S:.0f} s (it is "
        f"{status['lag']} behind); use a machine with nothing else on it, or a lower --rate"
    )


def _forget(lake: Kept) -> None:
    """Ask the system to drop its cache of the data files; without it cold means less."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in lake.files():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _environment(run: Run, names: str, port: int, exchange_port: int) -> dict[str, str]:
    return {
        **own_worker(run.lake.data, port, f"ws://127.0.0.1:{exchange_port}", names.split(",")),
        "K2_API_RATE_PER_MINUTE": "0",
        "K2_DEGRADATION_EXEMPT": "true",
    }


@click.command(short_help="How long answers take over HTTP, warm and cold, under ingestion.")
@click.option("--rows", default=10_000_000, show_default=True, help="Trades of the lake.")
@click.option("--symbols", default=100, show_default=True, type=click.IntRange(MANY, 600))
@click.option("--days", default=30, show_default=True, type=click.IntRange(2, 365))
@click.option("--dir", "directory", type=click.Path(path_type=Path, file_okay=False),
              help="Where the lake is, or is built, and stays; default: temporary.")  # fmt: skip
@click.option("--requests", default=1_000, show_default=True, help="Of each kind, warm and cold.")
@click.option("--rate", default=5_000.0, show_default=True, help="Messages a second meanwhile.")
@click.option("--seconds", default=10.0, show_default=True, help="Of the hundred clients.")
@click.option("--cold/--no-cold", default=True, show_default=True, help="Also measure cold.")
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object.")
def query(
    rows: int,
    symbols: int,
    days: int,
    directory: Path | None,
    requests: int,
    rate: float,
    seconds: float,
    cold: bool,
    as_json: bool,
) -> None:
    """Ask a real worker on a lake of a month, over HTTP, while it takes in a simulated feed.

    Warm: each question was asked before. Cold: the worker has just been started, the lake's files
    are out of the system's cache, and each request is the first for its symbol and day. The lake
    in --dir is put back before each start, so it can be used again.

    In brackets: how long this machine takes for a million additions right after, beside the feed.
    """
    with tempfile.TemporaryDirectory(prefix="k2-bench-lake-") as temporary:
        lake = Kept.of(directory or Path(temporary) / "lake", rows, symbols, days)
        found = asyncio.run(measure(Run(lake, requests, rate, seconds, cold)))
    if as_json:
        click.echo(jsonlib.dumps({"rows": rows, "symbols": symbols, "days": days,
                                  "machine": machine(), **found}))  # fmt: skip
