"""The lake `k2 bench query` asks: a month of trades as a maintained lake holds them; kept.

Each day is one commit, so one sorted file per day and bucket: what compaction leaves of a day. The
commits' times are those days' ends and each has its daily tag, so time travel reaches them all.

A worker changes the lake it runs on. Before each run the lake is put back: data files are never
changed, only added, and what names them is kept as a copy.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from aiokafka.partitioner import murmur2

from k2.errors import K2Error
from k2.lake.catalog import CATALOG_NAME, CachingSqlCatalog
from k2.lake.tables import TRADES, ensure_table
from k2.lake.vector import Place, Position
from k2.lake.writer import LakeWriter
from k2.maintenance.keeper import Keeper
from k2.times import DAY_US

#: Ids of the simulated exchange go on here, so that neither a gap nor a duplicate lies between.
NEXT_ID: Final = 1_000_000_000
_EPOCH: Final = "00000000-0000-0000-0000-0000000000b1"
_LOG: Final = "market.crypto.trades.binance"
_PARTITIONS: Final = 16
_UTC: Final = pa.timestamp("us", tz="UTC")
_FORMAT: Final = 1

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shape:
    """How many rows of how many symbols over how many whole days, the last ending `end_us`."""

    rows: int
    symbols: int
    days: int
    end_us: int
    seed: int = 11

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The most active first."""
        pairs = [(a, b) for a in range(26) for b in range(26)]
        return tuple(f"{chr(65 + a)}{chr(65 + b)}QUSDT" for a, b in pairs[: self.symbols])

    @property
    def start_us(self) -> int:
        return self.end_us - self.days * DAY_US

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """Rows per day and symbol: activity falls as 1/rank, every symbol trades every day."""
        weights = 1.0 / np.arange(1, self.symbols + 1)
        rng = np.random.default_rng(self.seed)
        per_day = np.full(self.days, self.rows // self.days)
        per_day[: self.rows % self.days] += 1
        drawn = [rng.multinomial(max(0, n - self.symbols), weights / weights.sum()) + 1
                 for n in per_day]  # fmt: skip
        return np.array(drawn, np.int64)


def day_rows(shape: Shape, day: int) -> pa.Table:
    """The trades of one day in time order: bursts within milliseconds, prices that wander."""
    rng = np.random.default_rng((shape.seed, day))
    counts = shape.counts[day]
    which = np.repeat(np.arange(shape.symbols), counts)
    total = len(which)
    # A third of the trades share their millisecond with the one before: one order, several fills.
    times = np.sort(rng.integers(0, DAY_US // 1_000, total))
    times[1:][rng.random(total - 1) < 0.33] = -1
    times = np.maximum.accumulate(times)
    which = rng.permutation(which)
    stamps = shape.start_us + day * DAY_US + times * 1_000
    return _table(shape, day, which, stamps, rng)


def _table(
    shape: Shape, day: int, which: _Ints, stamps: _Ints, rng: np.random.Generator
) -> pa.Table:
    count = len(which)
    names = pa.array(shape.names)
    symbols = names.take(pa.array(which))
    ids = _running(which, shape.symbols) + _first_ids(shape, day)[which]
    partitions = np.array([_partition(name) for name in shape.names])[which]
    sequences = _running(partitions, _PARTITIONS) + _first_sequences(shape, day)[partitions]
    texts, millis = (pa.array(values).cast(pa.string()) for values in (ids, stamps // 1_000))
    buyer = rng.random(count) < 0.5
    columns = {
        "message_id": pc.binary_join_element_wise("BINANCE", millis, symbols, texts, ":"),
        "trade_id": texts,
        "symbol": symbols,
        "exchange": pa.repeat("BINANCE", count),
        "asset_class": pa.repeat("crypto", count),
        "timestamp": pa.array(stamps, _UTC),
        "receive_timestamp": pa.array(stamps + rng.integers(900, 60_000, count), _UTC),
        "ingestion_timestamp": pa.array(stamps + rng.integers(60_000, 90_000, count), _UTC),
        "price": _decimals(_prices(which, rng), 8),
        "quantity": _decimals(1 + rng.lognormal(9, 2, count).astype(np.int64), 5),
        "currency": pa.repeat("USDT", count),
        "side": pa.array(np.where(buyer, "SELL", "BUY")),
        "trade_conditions": pa.ListArray.from_arrays(
            pa.array(np.zeros(count + 1, np.int32)), pa.array([], pa.string())
        ),
        "source_sequence": pa.array(ids),
        "vendor_data": _vendor(symbols, millis, buyer),
        "is_backfill": pa.repeat(False, count),
        "log_epoch": pa.repeat(_EPOCH, count),
        "log_topic": pa.repeat(_LOG, count),
        "log_partition": pa.array(partitions.astype(np.int32)),
        "platform_sequence": pa.array(sequences),
    }
    return pa.table(columns).select(TRADES.arrow_schema.names).cast(TRADES.arrow_schema)


def _running(keys: _Ints, most: int) -> _Ints:
    """0, 1, 2, … among equal keys, in their order."""
    order = np.argsort(keys, kind="stable")
    counts = np.bincount(keys, minlength=most)
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    out = np.empty(len(keys), np.int64)
    out[order] = np.arange(len(keys)) - np.repeat(starts, counts)
    return out


def _first_ids(shape: Shape, day: int) -> _Ints:
    """Contiguous from day to day; the last day ends just below `NEXT_ID`."""
    left: _Ints = shape.counts[day:].sum(axis=0)
    return NEXT_ID - left


def _first_sequences(shape: Shape, day: int) -> _Ints:
    before = shape.counts[:day].sum(axis=0)
    partitions = [_partition(name) for name in shape.names]
    return np.bincount(partitions, weights=before, minlength=_PARTITIONS).astype(np.int64)


def _partition(symbol: str) -> int:
    return int((murmur2(symbol.encode()) & 0x7FFFFFFF) % _PARTITIONS)


def _prices(which: _Ints, rng: np.random.Generator) -> _Ints:
    """Units of 1e-2: each symbol has its level, steps of a few ticks accumulate."""
    order = np.argsort(which, kind="stable")
    steps = np.cumsum(rng.integers(-3, 4, len(which)))
    level = 10_000 * (1 + which % 600)
    prices = np.empty(len(which), np.int64)
    prices[order] = steps
    return np.maximum(1, level + prices % (level // 2))


def _decimals(units: _Ints, zeros: int) -> pa.Array:
    """Integers as decimal(28,10) with `zeros` further digits: the bytes as Arrow holds them."""
    values = np.empty((len(units), 2), np.int64)
    values[:, 0] = units * 10**zeros
    values[:, 1] = 0
    buffers = [None, pa.py_buffer(values.tobytes())]
    return pa.Array.from_buffers(pa.decimal128(28, 10), len(units), buffers)


def _vendor(symbols: pa.Array, millis: pa.Array, buyer: npt.NDArray[np.bool_]) -> pa.Array:
    """What Binance sends beyond the columns, as the lake holds it."""
    flag = pa.array(np.where(buyer, "true", "false"))
    base = pc.utf8_slice_codeunits(symbols, 0, 3)
    return pc.binary_join_element_wise(
        '{"is_buyer_maker":"', flag, '","event_type":"trade","event_time":"', millis,
        '","trade_time":"', millis, '","base_asset":"', base,
        '","quote_asset":"USDT","is_best_match":"true"}', "",
    )  # fmt: skip


class _DayEnd:
    """The wall clock stands at the end of a day."""

    def __init__(self) -> None:
        self.us = 0

    def now_us(self) -> int:
        return self.us

    def monotonic_s(self) -> float:
        return time.monotonic()

    async def sleep(self, _seconds: float) -> None:
        """Nobody waits here."""


@dataclass(frozen=True)
class Kept:
    """The directory of one lake: `data` is a worker's data directory, `pristine` what names it."""

    path: Path
    shape: Shape

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def _pristine(self) -> Path:
        return self.path / "pristine"

    @classmethod
    def of(cls, path: Path, rows: int, symbols: int, days: int) -> Kept:
        """The lake in `path`, built when it is not there. Raises `K2Error` for another one."""
        note = path / "lake.json"
        if not note.exists():
            if path.exists() and any(path.iterdir()):
                raise K2Error(f"--dir {path}: not empty and not a lake of this benchmark")
            end_us = time.time_ns() // 1_000 // DAY_US * DAY_US
            made = cls(path.absolute(), Shape(rows, symbols, days, end_us))
            made._build()
            note.write_text(json.dumps({"format": _FORMAT, **asdict(made.shape)}))
            return made
        known: dict[str, Any] = json.loads(note.read_text())
        asked = {"format": _FORMAT, "rows": rows, "symbols": symbols, "days": days}
        if {name: known.get(name) for name in asked} != asked:
            raise K2Error(f"--dir {path} holds another lake ({known}); give another directory")
        known.pop("format")
        return cls(path.absolute(), Shape(**known))

    def files(self) -> Iterator[Path]:
        """The data files of the lake itself."""
        for line in (self._pristine / "files.txt").read_text().splitlines():
            yield self.data / line

    def restore(self) -> None:
        """Take away whatever a worker left: its log, its commits, its files."""
        for entry in self.data.iterdir():
            if entry.name != "warehouse":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        ours = set(self.files())
        for path in self.data.glob("warehouse/**/*"):
            if path.is_file() and path not in ours:
                path.unlink()
        shutil.copytree(self._pristine / "data", self.data, dirs_exist_ok=True)
        missing = [path for path in ours if not path.exists()]
        if missing:
            raise K2Error(f"{len(missing)} data files are gone from {self.data}; build it anew")

    def _build(self) -> None:
        self.data.mkdir(parents=True)
        clock = _DayEnd()
        catalog = CachingSqlCatalog(
            CATALOG_NAME,
            uri=f"sqlite:///{self.data}/catalog.db",
            warehouse=(self.data / "warehouse").as_uri(),
        )
        with ThreadPoolExecutor(2) as executor:
            ensure_table(catalog, TRADES, "zstd")
            writer = LakeWriter(catalog, TRADES, clock=clock, executor=executor)
            keeper = Keeper(catalog, TRADES, clock=clock)
            for day in range(self.shape.days):
                clock.us = self.shape.start_us + (day + 1) * DAY_US - 1_000_000
                _commit_day(writer, self.shape, day)
                clock.us += 2_000_000
                keeper.tag_history()
                click.echo(f"  day {day + 1} of {self.shape.days}", err=True)
            writer.close()
        catalog.close()
        self._keep()

    def _keep(self) -> None:
        """Copy what names the data files."""
        names = []
        for path in sorted(self.data.rglob("*")):
            inside = path.relative_to(self.data)
            if path.suffix == ".parquet":
                names.append(str(inside))
            elif path.is_file():
                copy = self._pristine / "data" / inside
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        (self._pristine / "files.txt").write_text("\n".join(names))


def _commit_day(writer: LakeWriter, shape: Shape, day: int) -> None:
    first, after = _first_sequences(shape, day), _first_sequences(shape, day + 1)
    base: dict[Place, Position | None] = {}
    reached: dict[Place, Position] = {}
    for partition, (low, high) in enumerate(zip(first.tolist(), after.tolist(), strict=True)):
        if high == low:
            continue
        place = Place(_EPOCH, f"{_LOG}.validated", partition)
        base[place] = Position(low, low - 1) if low else None
        reached[place] = Position(high, high - 1)
    writer.commit(day_rows(shape, day), base, reached)
