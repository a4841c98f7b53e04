"""What metrics, logs and traces cost the pipeline, taken together.

The same log of record, embedded, is put into a lake again and again: by a worker that measures,
logs and traces as in production (scraped, its lines written to a file, spans sent to a collector),
and by one that does none of it. Runs alternate, so that a machine that slows down slows both.
"""

from __future__ import annotations

import asyncio
import json as jsonlib
import math
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import click
import numpy as np
import psutil
from aiohttp import web

from k2.cli.bench.dataset import Shape, chunks
from k2.cli.bench.flow import Sample, environ
from k2.cli.bench.machine import machine
from k2.cli.demo.client import WorkerClient, free_port
from k2.cli.demo.processes import Child
from k2.cli.own import EMBEDDED
from k2.cli.up import worker_command
from k2.clock import SYSTEM_CLOCK
from k2.errors import K2Error
from k2.open_log import opened
from k2.settings import Settings, load_settings
from k2.topics import BINANCE_TRADES

_LIMIT_S: Final = 600.0
_POLL_S: Final = 0.1
_SCRAPE_S: Final = 5.0
#: Per cent of throughput that watching may cost.
_ALLOWED: Final = 5.0
#: Student's t, 97.5 %, by degrees of freedom; beyond, the normal's.
_T: Final = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14)


@dataclass(frozen=True, slots=True)
class Cost:
    """Share of throughput lost, and of processor time more, with 95 % intervals of the pairs."""

    percent: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Result:
    """`throughput`: per cent less; `cpu`: per cent more processor time per record."""

    records: int
    pairs: int
    bare_per_s: list[int]
    whole_per_s: list[int]
    throughput: Cost
    cpu: Cost
    scrapes: int
    spans_bytes: int
    log_lines: int
    machine: str


@dataclass(frozen=True, slots=True)
class Run:
    """Records a second and processor seconds per million, of one worker."""

    per_s: float
    cpu_s: float


def cost(better: Sequence[float], worse: Sequence[float]) -> Cost:
    """How much `worse` is above `better`, per cent: of the paired logarithms, with t's interval."""
    logs = np.log(np.array(worse) / np.array(better))
    mean = float(logs.mean())
    freedom = len(logs) - 1
    t = _T[freedom - 1] if freedom <= len(_T) else 1.96
    half = t * float(logs.std(ddof=1)) / math.sqrt(len(logs))

    def percent(value: float) -> float:
        return round(100 * math.expm1(value), 2)

    return Cost(percent(mean), percent(mean - half), percent(mean + half))


class Bench:
    """The runs, over one prepared log."""

    def __init__(self, directory: Path, records: int) -> None:
        self._directory = directory
        self._records = records
        self._collected = 0
        self._scrapes = 0
        self._lines = 0

    async def run(self, pairs: int, *, quiet: bool) -> Result:
        collector = await self._collector()
        bare, whole = list[Run](), list[Run]()
        try:
            for pair in range(pairs):
                # In turn, so that what changes with time favours neither.
                for kind in (False, True) if pair % 2 else (True, False):
                    (whole if kind else bare).append(await self._one(kind))
                if not quiet:
                    click.echo(f"pair {pair + 1}: {bare[-1].per_s:,.0f} records/s bare, "
                               f"{whole[-1].per_s:,.0f} with everything")  # fmt: skip
        finally:
            await collector.cleanup()
        return Result(
            self._records,
            pairs,
            [round(one.per_s) for one in bare],
            [round(one.per_s) for one in whole],
            cost([one.per_s for one in whole], [one.per_s for one in bare]),
            cost([one.cpu_s for one in bare], [one.cpu_s for one in whole]),
            self._scrapes,
            self._collected,
            self._lines,
            machine(),
        )

    async def _collector(self) -> web.AppRunner:
        """What takes the spans, as an OpenTelemetry collector does."""

        async def take(request: web.Request) -> web.Response:
            self._collected += len(await request.read())
            return web.Response(content_type="application/x-protobuf", body=b"")

        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/traces", take)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self._traces = "http://{}:{}".format(*runner.addresses[0])
        return runner

    async def _one(self, whole: bool) -> Run:
        data = self._directory / "run"
        shutil.copytree(self._directory / "data", data)
        port = free_port()
        command = worker_command()
        if not whole:
            command = [sys.executable, "-P", "-m", "k2.cli.bench.bare", "worker", "-l", "error"]
        log = self._directory / "worker.log"
        log.unlink(missing_ok=True)
        child = Child("worker", command, log)
        await child.start(self._environment(data, port, whole))
        try:
            async with aiohttp.ClientSession() as http:
                key = load_settings().api.key.get_secret_value()
                client = WorkerClient(http, f"http://127.0.0.1:{port}", key)
                await client.wait_ready(child, 60)
                scraping = asyncio.create_task(self._scrape(http, port)) if whole else None
                try:
                    return _run_of(await self._samples(child, client))
                finally:
                    if scraping is not None:
                        scraping.cancel()
        finally:
            await child.stop(30)
            self._lines += len(log.read_text(errors="replace").splitlines()) if whole else 0
            shutil.rmtree(data)

    async def _scrape(self, http: aiohttp.ClientSession, port: int) -> None:
        while True:
            with suppress(aiohttp.ClientError):
                async with http.get(f"http://127.0.0.1:{port}/metrics") as answer:
                    await answer.read()
                    self._scrapes += 1
            await asyncio.sleep(_SCRAPE_S)

    async def _samples(self, child: Child, client: WorkerClient) -> list[Sample]:
        process, samples = psutil.Process(child.pid), list[Sample]()
        until_s = SYSTEM_CLOCK.monotonic_s() + _LIMIT_S
        while SYSTEM_CLOCK.monotonic_s() < until_s:
            child.check()
            status: dict[str, Any] = await client.status()
            cpu = process.cpu_times()
            done = status["sink"]["tables"]["trades"]["rows"] + status["validate"]["duplicates"]
            now_s = SYSTEM_CLOCK.monotonic_s()
            samples.append(Sample(now_s, done, cpu.user + cpu.system, 0))
            if done >= self._records and status["drained"]:
                return samples
            await asyncio.sleep(_POLL_S)
        raise K2Error(f"the worker did not finish within {_LIMIT_S:.0f} s:\n{child.log_tail()}")

    def _environment(self, data: Path, port: int, whole: bool) -> dict[str, str]:
        return {
            "K2_DATA_DIR": str(data),
            "K2_API_PORT": str(port),
            "K2_BINANCE_ENABLED": "false",
            "K2_DEGRADATION_EXEMPT": "true",
            "K2_LOG_LEVEL": "INFO" if whole else "ERROR",
            "K2_LOG_FORMAT": "json",
            "K2_TRACING_OTLP_ENDPOINT": self._traces if whole else "",
        }


def _run_of(samples: Sequence[Sample]) -> Run:
    """From the last moment without progress on, so that starting is left out."""
    first = next(i for i, sample in enumerate(samples) if sample.done) - 1
    begin, end = samples[max(first, 0)], next(s for s in samples if s.done == samples[-1].done)
    done = end.done - begin.done
    return Run(done / (end.at_s - begin.at_s), (end.cpu_s - begin.cpu_s) / done * 1e6)


async def fill(settings: Settings, records: int) -> None:
    """The benchmarks' trades in an embedded log of record, as a source leaves them."""
    async with opened(settings, BINANCE_TRADES) as log:
        for chunk in chunks(Shape(records)):
            for start in range(0, chunk.num_rows, 10_000):
                await asyncio.gather(*log.publisher.publish(chunk.slice(start, 10_000), "bench"))


@click.command(short_help="What metrics, logs and traces cost the pipeline.")
@click.option("--records", default=1_000_000, show_default=True, help="Records per run.")
@click.option("--pairs", default=8, show_default=True, help="Runs of each kind, in turn.")
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object.")
def overhead(records: int, pairs: int, as_json: bool) -> None:
    """Log of record to lake, with and without metrics, logs and traces, in turn.

    Embedded log, one worker, roles as always. Tells the throughput lost and the processor time
    spent for them, per cent, with the 95 % interval of the pairs. Ends with status 1 when more of
    the throughput is lost than allowed.
    """
    if pairs < 2:
        raise click.BadParameter(f"{pairs}; allowed: 2 or more", param_hint="--pairs")
    with tempfile.TemporaryDirectory(prefix="k2-bench-") as name:
        directory = Path(name)
        with environ({**EMBEDDED, "K2_DATA_DIR": str(directory / "data")}):
            asyncio.run(fill(load_settings(), records))
            result = asyncio.run(Bench(directory, records).run(pairs, quiet=as_json))
    if as_json:
        click.echo(jsonlib.dumps(asdict(result)))
    else:
        _show(result)
    if result.throughput.percent > _ALLOWED:
        raise K2Error(
            f"metrics, logs and traces cost {result.throughput.percent} % of the throughput; "
            f"allowed: {_ALLOWED} %"
        )
    if result.throughput.high > _ALLOWED:
        click.echo("the interval reaches above what is allowed: this run proves nothing; give it "
                   "more pairs, or a quieter machine", err=True)  # fmt: skip


def _show(result: Result) -> None:
    for label, one in (("throughput lost", result.throughput), ("processor time", result.cpu)):
        click.echo(f"{label:>16}: {one.percent:+.2f} % (95 %: {one.low:+.2f} … {one.high:+.2f})")
    click.echo(f"{'with everything':>16}: {result.scrapes} scrapes, {result.log_lines} log lines, "
               f"{result.spans_bytes:,} bytes of spans")  # fmt: skip
    click.echo(f"{'machine':>16}: {result.machine}")
