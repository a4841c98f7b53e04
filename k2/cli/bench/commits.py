"""`k2 bench commits`: several sinks on one table, each in a process of its own.

What bounds a table is its metadata: files are written side by side, but only one commit at a time
can be the next. Every writer commits at its interval, as the sink does, and counts what its
commits took, how often another was first, and whether any of them was kept waiting by the others.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import pyarrow as pa
import structlog

from k2.cli.bench.lake import count_rows, local_catalog, rows_at
from k2.cli.bench.machine import machine
from k2.lake.tables import TRADES, ensure_table
from k2.lake.vector import Place, Position
from k2.lake.writer import LakeWriter
from k2.maintenance.keeper import Keeper

_EPOCH: Final = "00000000-0000-0000-0000-000000000001"
_TOPIC: Final = "market.crypto.trades.binance.validated"
#: Until every process has loaded what it needs.
_START_S: Final = 8.0


@dataclass(frozen=True, slots=True)
class _Job:
    """What one writer does. `begin_s`: wall clock at which all of them begin."""

    folder: Path
    number: int
    writers: int
    rows: int
    seconds: float
    interval_s: float
    begin_s: float


@dataclass(frozen=True, slots=True)
class _Done:
    """Seconds of every commit, its attempts, and the CPU seconds of the process."""

    seconds: list[float]
    attempts: list[int]
    cpu_s: float


def _write(job: _Job) -> _Done:
    """Commit until the time is over; runs in a process of its own."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    catalog = local_catalog(job.folder)
    writer = LakeWriter(catalog, TRADES)
    place = Place(_EPOCH, _TOPIC, job.number)
    symbols = pa.array([f"S{number:04d}USDT" for number in range(1_000)])
    day_us = time.time_ns() // 1_000
    seconds, attempts = [], []
    time.sleep(max(0.0, job.begin_s - time.time()))
    started_s, cpu_s, count = time.monotonic(), time.process_time(), 0
    spent_s = 0.0
    while time.monotonic() - started_s < job.seconds:
        due_s = started_s + count * job.interval_s
        time.sleep(max(0.0, due_s - time.monotonic()))
        # Every writer has ids of its own: number, number + writers, …
        mark_s = time.process_time()
        rows = rows_at(count * job.writers + job.number, job.rows, symbols, day_us, 1_000_000)
        spent_s += time.process_time() - mark_s
        base = Position(count, count - 1) if count else None
        found = writer.commit(rows, {place: base}, {place: Position(count + 1, count)})
        seconds.append(found.seconds)
        attempts.append(found.attempts)
        count += 1
    cpu_s = time.process_time() - cpu_s - spent_s
    writer.close()
    catalog.close()
    return _Done(seconds, attempts, cpu_s)


def run(folder: Path, writers: int, rows: int, seconds: float, interval_s: float) -> dict[str, Any]:
    """Let the writers run together; the figures."""
    catalog = local_catalog(folder)
    ensure_table(catalog, TRADES, "zstd")
    begin_s = time.time() + _START_S
    jobs = [
        _Job(folder, number, writers, rows, seconds, interval_s, begin_s)
        for number in range(writers)
    ]
    with ProcessPoolExecutor(writers, multiprocessing.get_context("spawn")) as pool:
        done = list(pool.map(_write, jobs))
    status = Keeper(catalog, TRADES).status()
    ids = np.concatenate(
        [
            np.arange(first, first + rows)
            for number, one in enumerate(done)
            for commit in range(len(one.seconds))
            for first in [(commit * writers + number) * rows]
        ]
    )
    lost, doubled = count_rows(catalog, int(ids.max()) + 1, expected=ids)
    catalog.close()
    took = np.array([second for one in done for second in one.seconds]) * 1_000
    tries = [attempt for one in done for attempt in one.attempts]
    commits = [len(one.seconds) for one in done]
    return {
        "writers": writers,
        "rows_per_commit": rows,
        "interval_s": interval_s,
        "commits": sum(commits),
        "commits_per_s": round(sum(commits) / seconds, 2),
        "rows_per_s": round(len(ids) / seconds),
        "lost": lost,
        "duplicated": doubled,
        "commit_p50_ms": round(float(np.median(took)), 1),
        "commit_p99_ms": round(float(np.percentile(took, 99)), 1),
        "attempts_per_commit": round(sum(tries) / len(tries), 2),
        "most_attempts": max(tries),
        "fewest_commits_of_a_writer": min(commits),
        "most_commits_of_a_writer": max(commits),
        "cpu_s_per_million_rows": round(sum(one.cpu_s for one in done) / len(ids) * 1e6, 2),
        "metadata_bytes": status.metadata_bytes,
        "machine": machine(),
    }


@click.command()
@click.option("--writers", default="1,2,4,8", show_default=True, help="Comma separated.")
@click.option("--rows", default=5_000, show_default=True, help="Rows of one commit.")
@click.option("--seconds", default=20.0, show_default=True)
@click.option("--interval", default=1.0, show_default=True, help="Seconds between a writer's own.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per number of writers.")
def commits(writers: str, rows: int, seconds: float, interval: float, as_json: bool) -> None:
    """Commit to one table from several processes at once and count every row."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    for count in map(int, writers.split(",")):
        with tempfile.TemporaryDirectory(prefix="k2-bench-commits-") as folder:
            found = run(Path(folder), count, rows, seconds, interval)
        if as_json:
            click.echo(json.dumps(found))
            continue
        for name, value in found.items():
            click.echo(f"{name.replace('_', ' '):<28} {value}")
        click.echo()
