"""`k2 bench scale`: the pipeline on several workers that share topics and tables."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import click
import psutil

from k2.cli.bench.flow import environ, fill_topic, flow_environment
from k2.cli.bench.machine import machine
from k2.cli.bench.transport import own_kafka
from k2.cli.demo.client import WorkerClient, free_port
from k2.cli.demo.processes import Child
from k2.cli.up import worker_command
from k2.errors import K2Error
from k2.settings import Settings, load_settings

_POLL_S: Final = 0.2
_LIMIT_S: Final = 900.0


@dataclass(slots=True)
class _Worker:
    """One worker process and the page it answers on."""

    child: Child
    client: WorkerClient
    process: psutil.Process


@dataclass(frozen=True, slots=True)
class _Look:
    """All workers together at one moment: records done, rows stored, commits, CPU seconds."""

    at_s: float
    done: int
    rows: int
    commits: int
    cpu_s: float
    shares: tuple[int, ...]


def run(kind: str, workers: int, records: int) -> dict[str, Any]:
    """Fill the topic, start the workers together, watch until all is stored; the figures."""
    with (
        own_kafka() as servers,
        tempfile.TemporaryDirectory(prefix="k2-bench-") as directory,
        environ(flow_environment(servers, Path(directory), kind)),
    ):
        settings = load_settings()
        asyncio.run(fill_topic(settings, kind, records))
        looks = asyncio.run(_watch(settings, Path(directory), kind, workers, records))
    begin = looks[max(0, next(i for i, one in enumerate(looks) if one.done) - 1)]
    end = next(one for one in looks if one.done == looks[-1].done)
    # A worker begins when it is ready, maybe before the last one is, and so before the first look.
    seconds, done = end.at_s - begin.at_s, end.done - begin.done
    return {
        "kind": kind,
        "workers": workers,
        "records": records,
        "rows": end.rows,
        "seconds": round(seconds, 1),
        "records_per_s": round(done / seconds),
        "cpu_s_per_million": round((end.cpu_s - begin.cpu_s) / done * 1e6, 2),
        "cpus_busy": round((end.cpu_s - begin.cpu_s) / seconds, 2),
        "commits": end.commits,
        "commits_per_s": round((end.commits - begin.commits) / seconds, 2),
        "least_and_most_of_a_worker": [min(end.shares), max(end.shares)],
        "machine": f"{machine()}, Kafka on the same",
    }


async def _watch(
    settings: Settings, directory: Path, kind: str, count: int, records: int
) -> list[_Look]:
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        key = settings.api.key.get_secret_value()
        workers = [await _start(stack, http, key, directory, number) for number in range(count)]
        for worker in workers:
            await worker.client.wait_ready(worker.child, 120)
        looks: list[_Look] = []
        deadline = time.monotonic() + _LIMIT_S
        while time.monotonic() < deadline:
            found = await asyncio.gather(*(one.client.status() for one in workers))
            looks.append(_look(workers, found, kind))
            drained = all(status["drained"] for status in found)
            if drained and looks[-1].done >= (records if kind != "sink" else 1):
                return looks
            await asyncio.sleep(_POLL_S)
    raise K2Error(f"{count} workers stored {looks[-1].done} of {records} in {_LIMIT_S:.0f} s")


async def _start(
    stack: AsyncExitStack, http: aiohttp.ClientSession, key: str, directory: Path, number: int
) -> _Worker:
    port = free_port()
    child = Child(f"worker-{number}", worker_command(), directory / f"worker-{number}.log")
    await child.start({"K2_API_PORT": str(port)})
    stack.push_async_callback(child.stop, 30)
    client = WorkerClient(http, f"http://127.0.0.1:{port}", key)
    return _Worker(child, client, psutil.Process(child.pid))


def _look(workers: list[_Worker], found: list[dict[str, Any]], kind: str) -> _Look:
    cpu_s, shares, rows, commits = 0.0, [], 0, 0
    for worker, status in zip(workers, found, strict=True):
        worker.child.check()
        cpu = worker.process.cpu_times()
        cpu_s += cpu.user + cpu.system
        table = status["sink"]["tables"]["trades"]
        rows += table["rows"]
        commits += table["commits"]
        dropped = 0 if kind == "sink" else status["validate"]["duplicates"]
        shares.append(table["rows"] + dropped)
    return _Look(time.monotonic(), sum(shares), rows, commits, cpu_s, tuple(shares))


@click.command()
@click.option("--workers", default="1,2,4", show_default=True, help="Comma separated.")
@click.option("--kind", type=click.Choice(["pipeline", "sink"]), default="pipeline")
@click.option("--records", default=1_000_000, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per number of workers.")
def scale(workers: str, kind: str, records: int, as_json: bool) -> None:
    """Log of record to lake (or the sink alone) with 1, 2, 4 workers of one consumer group."""
    for count in map(int, workers.split(",")):
        found = run(kind, count, records)
        if as_json:
            click.echo(json.dumps(found))
            continue
        for name, value in found.items():
            click.echo(f"{name.replace('_', ' '):<28} {value}")
        click.echo()
