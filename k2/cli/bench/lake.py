"""`k2 bench lake`: a day of five-second commits with maintenance on, time compressed.

Commits and rounds of maintenance take turns as they would by the clock, which is simulated: a
commit's time is its own. A symbol's day is queried beside the same rows written once, at the end of
the run and when the day has been closed; then every row is counted.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog
from pyiceberg.catalog import Catalog

from k2.cli.bench.lake_query import compare
from k2.cli.bench.machine import machine
from k2.lake.catalog import open_catalog
from k2.lake.reader import LakeReader
from k2.lake.tables import TRADES, ensure_table
from k2.lake.vector import Place, Position
from k2.lake.writer import LakeWriter
from k2.maintenance.keeper import Keeper
from k2.maintenance.status import most_files
from k2.settings import load_settings
from k2.times import DAY_US

_EPOCH: Final = "00000000-0000-0000-0000-000000000001"
_LOG: Final = "market.crypto.trades.binance"
_PLACE: Final = Place(_EPOCH, f"{_LOG}.validated", 0)
_HOUR_S: Final = 3_600
#: How long after midnight the day is closed, and in how many rounds at most.
_AFTER_S: Final = 600
_CLOSING_ROUNDS: Final = 3
_UTC: Final = pa.timestamp("us", tz="UTC")


class SimulatedClock:
    """Wall time as told, from the next midnight on; monotonic time is real."""

    def __init__(self) -> None:
        self.start_us = (time.time_ns() // 1_000 // DAY_US + 1) * DAY_US
        self.passed_s = 0.0

    def now_us(self) -> int:
        return self.start_us + int(self.passed_s * 1e6)

    def monotonic_s(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Nobody waits here."""
        self.passed_s += seconds


@dataclass(slots=True)
class Measured:
    """Milliseconds of every commit, by the wall and of this process's CPU, and what was merged."""

    commit_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    maintenance_s: float = 0.0
    maintenance_cpu_s: float = 0.0
    rounds: int = 0
    rows_merged: int = 0
    most_files: int = 0
    open_day: dict[str, Any] = field(default_factory=dict)


def rows_at(number: int, count: int, symbols: pa.Array, start_us: int, span_us: int) -> pa.Table:
    """The trades of one commit: symbols in turn, prices that wander, rising ids."""
    rng = np.random.default_rng(number)
    ids = np.arange(number * count, (number + 1) * count, dtype=np.int64)
    times = start_us + np.sort(rng.integers(0, span_us, count))
    which = rng.integers(0, len(symbols), count)
    names = symbols.take(pa.array(which))
    texts = pa.array(ids).cast(pa.string())
    stamp = pa.array(times // 1_000).cast(pa.string())
    price = pa.array(10_000 + which * 7 + rng.integers(-50, 50, count)).cast(pa.decimal128(19, 0))
    quantity = pa.array(rng.integers(1, 9_999, count)).cast(pa.decimal128(19, 0))
    columns = {
        "message_id": pc.binary_join_element_wise("BINANCE", stamp, names, texts, ":"),
        "trade_id": texts,
        "symbol": names,
        "exchange": pa.repeat("BINANCE", count),
        "asset_class": pa.repeat("crypto", count),
        "timestamp": pa.array(times, _UTC),
        "receive_timestamp": pa.array(times + rng.integers(900, 60_000, count), _UTC),
        "ingestion_timestamp": pa.array(times + rng.integers(60_000, 90_000, count), _UTC),
        "price": price.cast(pa.decimal128(28, 10)),
        "quantity": quantity.cast(pa.decimal128(28, 10)),
        "currency": pa.repeat("USDT", count),
        "side": pa.array(np.where(rng.integers(0, 2, count) == 0, "BUY", "SELL")),
        "trade_conditions": pa.nulls(count, pa.list_(pa.string())),
        "source_sequence": pa.array(ids),
        "vendor_data": pa.nulls(count, pa.string()),
        "is_backfill": pa.repeat(False, count),
        "log_epoch": pa.repeat(_EPOCH, count),
        "log_topic": pa.repeat(_LOG, count),
        "log_partition": pa.array(np.zeros(count, np.int32)),
        "platform_sequence": pa.array(ids),
    }
    return pa.table(columns).select(TRADES.arrow_schema.names)


@dataclass(frozen=True, slots=True)
class Day:
    """What is run: commits of rows over symbols, `interval_s` apart, a round every `round_s`."""

    commits: int
    rows: int
    symbols: int
    interval_s: float = 5.0
    round_s: float = 30.0


def run_day(catalog: Catalog, day: Day) -> Measured:
    """Commit and maintain."""
    clock, measured = SimulatedClock(), Measured()
    writer = LakeWriter(catalog, TRADES, clock=clock)
    keeper = Keeper(catalog, TRADES, clock=clock)
    names = pa.array([f"S{number:04d}USDT" for number in range(day.symbols)])
    next_round_s, next_hour_s = day.round_s, float(_HOUR_S)
    for number in range(day.commits):
        rows = rows_at(number, day.rows, names, clock.now_us(), int(day.interval_s * 1e6))
        clock.passed_s += day.interval_s
        _commit(writer, rows, number, day.rows, measured)
        if clock.passed_s >= next_round_s:
            next_round_s += day.round_s
            _maintain(keeper, measured, hourly=clock.passed_s >= next_hour_s)
        if clock.passed_s >= next_hour_s:
            next_hour_s += _HOUR_S
            _tell(measured, clock.passed_s / _HOUR_S)
    _maintain(keeper, measured, hourly=False)
    measured.open_day = compare(catalog)
    # The day ends: the first round sees that nothing came any more, the second closes it.
    clock.passed_s = max(clock.passed_s, DAY_US / 1e6) + _AFTER_S
    for _ in range(_CLOSING_ROUNDS):
        _maintain(keeper, measured, hourly=False)
    writer.close()
    return measured


def _tell(measured: Measured, hours: float) -> None:
    """How far it is, and how an hour's commits went: it is a long way."""
    wall, cpu = (
        float(np.percentile(times[-720:], 99)) for times in (measured.commit_ms, measured.cpu_ms)
    )
    click.echo(f"  {hours:.0f} h  commit p99 {wall:.0f} ms ({cpu:.0f} ms of CPU)", err=True)


def _commit(
    writer: LakeWriter, rows: pa.Table, number: int, count: int, measured: Measured
) -> None:
    base = Position(number * count, number * count - 1) if number else None
    position = Position((number + 1) * count, (number + 1) * count - 1)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    writer.commit(rows, {_PLACE: base}, {_PLACE: position})
    measured.commit_ms.append((time.perf_counter() - wall_s) * 1_000)
    measured.cpu_ms.append((time.process_time() - cpu_s) * 1_000)


def _maintain(keeper: Keeper, measured: Measured, *, hourly: bool) -> None:
    started_s, cpu_s = time.perf_counter(), time.process_time()
    report = keeper.compact()
    measured.rows_merged += report.rows
    measured.most_files = max(measured.most_files, report.most_files)
    measured.rounds += 1
    if hourly:
        keeper.tag_history()
        keeper.cleaner.sweep()
    measured.maintenance_s += time.perf_counter() - started_s
    measured.maintenance_cpu_s += time.process_time() - cpu_s


def count_rows(
    catalog: Catalog, rows: int, expected: npt.NDArray[np.int64] | None = None
) -> tuple[int, int]:
    """(lost, duplicated) of the ids 0…rows-1, or of those `expected`, read from every live file."""
    reader = LakeReader(catalog)
    pinned = reader.current(TRADES)
    seen = np.zeros(rows, np.bool_)
    stored = 0
    for file in reader.files(pinned):
        with pinned.io.new_input(file.path).open() as stream:
            ids = pq.read_table(stream, columns=["platform_sequence"])["platform_sequence"]
        seen[ids.to_numpy()] = True
        stored += len(ids)
    found = int(seen.sum())
    wanted = rows if expected is None else len(expected)
    lost = wanted - found if expected is None else int((~seen[expected]).sum())
    return lost, stored - found


def report(catalog: Catalog, day: Day, measured: Measured, seconds: float) -> dict[str, Any]:
    """The figures, those of the first and the last hour beside each other."""
    rows = day.commits * day.rows
    lost, duplicated = count_rows(catalog, rows)
    hour = max(1, min(int(_HOUR_S / day.interval_s), day.commits // 3))
    reader = LakeReader(catalog)
    files = reader.files(reader.current(TRADES))
    status = Keeper(catalog, TRADES).status()
    closed = compare(catalog)

    def p99(values: list[float]) -> float:
        return round(float(np.percentile(values, 99)), 1)

    return {
        "commits": day.commits,
        "rows": rows,
        "lost": lost,
        "duplicated": duplicated,
        "live_files": most_files(files),
        "live_files_ever": measured.most_files,
        "live_files_total": len(files),
        "commit_p99_first_hour_ms": p99(measured.commit_ms[:hour]),
        "commit_p99_last_hour_ms": p99(measured.commit_ms[-hour:]),
        "commit_p50_first_hour_ms": round(float(np.median(measured.commit_ms[:hour])), 1),
        "commit_p50_last_hour_ms": round(float(np.median(measured.commit_ms[-hour:])), 1),
        "commit_cpu_p99_first_hour_ms": p99(measured.cpu_ms[:hour]),
        "commit_cpu_p99_last_hour_ms": p99(measured.cpu_ms[-hour:]),
        **closed,
        **{f"open_day_{name}": value for name, value in measured.open_day.items()},
        "snapshots": status.snapshots,
        "manifests": status.manifests,
        "metadata_bytes": status.metadata_bytes,
        "times_rewritten": round(measured.rows_merged / rows, 2),
        "maintenance_s": round(measured.maintenance_s, 1),
        "maintenance_cpu_s": round(measured.maintenance_cpu_s, 1),
        "rounds": measured.rounds,
        "seconds": round(seconds, 1),
        "machine": machine(),
    }


def local_catalog(folder: Path) -> Catalog:
    """A catalog of its own, opened as a worker opens one, whatever lake the settings name."""
    settings = load_settings()
    core = settings.core.model_copy(update={"data_dir": folder})
    iceberg = settings.iceberg.model_copy(update={"catalog_uri": "", "warehouse": ""})
    return open_catalog(settings.model_copy(update={"core": core, "iceberg": iceberg}))


@click.command()
@click.option("--commits", default=17_280, show_default=True, help="17,280 are 24 hours.")
@click.option("--rows", default=5_000, show_default=True, help="Rows of one commit.")
@click.option("--symbols", default=1_000, show_default=True)
@click.option("--dir", "directory", type=click.Path(path_type=Path), help="Default: temporary.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def lake(commits: int, rows: int, symbols: int, directory: Path | None, as_json: bool) -> None:
    """Commit a simulated day to a local lake with maintenance on, then count and query it."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    folder = directory or Path(tempfile.mkdtemp(prefix="k2-bench-lake-"))
    folder.mkdir(parents=True, exist_ok=True)
    catalog = local_catalog(folder)
    try:
        ensure_table(catalog, TRADES, "zstd")
        started_s = time.perf_counter()
        day = Day(commits, rows, symbols)
        measured = run_day(catalog, day)
        found = report(catalog, day, measured, time.perf_counter() - started_s)
    finally:
        catalog.close()
        if directory is None:
            shutil.rmtree(folder)
    if as_json:
        click.echo(json.dumps(found))
        return
    for name, value in found.items():
        click.echo(f"{name.replace('_', ' '):<30} {value}")
