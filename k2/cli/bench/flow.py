"""How fast records get into the lake: the sink alone, and the whole pipeline, on one worker.

The worker is the production entry in a process of its own, on a real Kafka. Its rate is taken from
its first commit on to its last; beside it, on the same topic, the bare aiokafka loop and plain
Faust read.
"""

from __future__ import annotations

import asyncio
import contextlib
import json as jsonlib
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import click
import numpy as np
import psutil
import pyarrow as pa
from aiokafka import AIOKafkaProducer

from k2.catalogue import topic_specs
from k2.cli.bench.dataset import Shape, chunks
from k2.cli.bench.machine import machine
from k2.cli.bench.transport import measured, own_kafka
from k2.cli.demo.client import WorkerClient, free_port
from k2.cli.demo.processes import Child
from k2.cli.up import worker_command
from k2.clock import SYSTEM_CLOCK
from k2.codecs import Codecs, open_registry
from k2.errors import K2Error
from k2.pipeline.cover import COVER_HEADER, Cover
from k2.settings import Settings, load_settings
from k2.steps.publish import Partitioner
from k2.topics import BINANCE_TRADES, MARKET_TOPICS
from k2.transport.batch import OutBatch
from k2.transport.kafka_admin import KafkaAdmin
from k2.transport.producer import fill
from k2.transport.security import aiokafka_options

_BATCH = 1_000
_POLL_S = 0.25
_LIMIT_S = 900.0


@dataclass(frozen=True, slots=True)
class Result:
    """What one worker did, and what two readers of the same topic did."""

    records: int
    rows: int
    records_per_s: float
    cpu_s_per_million: float
    peak_rss_mb: float
    commits: int
    files: int
    raw_per_s: float
    plain_faust_per_s: float
    ratio_to_raw: float
    ratio_to_plain_faust: float
    second_fifth_per_s: float
    last_fifth_per_s: float
    duplicates: int
    missing_ids: int
    machine: str


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds on the monotonic clock, records done, CPU seconds and resident bytes so far."""

    at_s: float
    done: int
    cpu_s: float
    rss: int


def run(kind: str, records: int, *, quiet: bool) -> Result:
    """`kind`: `sink` (validated topic to lake) or `pipeline` (log of record to lake)."""
    with own_kafka() as servers, tempfile.TemporaryDirectory(prefix="k2-bench-") as directory:
        environment = flow_environment(servers, Path(directory), kind)
        with environ(environment):
            settings = load_settings()
            topic = BINANCE_TRADES.validated if kind == "sink" else BINANCE_TRADES.log
            _say(quiet, f"writing {records:,} records to {topic} …")
            asyncio.run(fill_topic(settings, kind, records))
            before = _others(servers, topic, records)
            _say(quiet, f"running the {kind} …")
            samples, status = asyncio.run(_watch(settings, Path(directory), kind, records))
        # On both sides of the run, the better one counts: a noisy machine must not flatter K2.
        after = _others(servers, topic, records)
        raw, plain = (max(pair) for pair in zip(before, after, strict=True))
    result = _result(samples, status, raw, plain, records)
    _say(quiet, f"{result.records_per_s:,.0f} records/s into the lake")
    return result


def _others(servers: str, topic: str, records: int) -> tuple[float, float]:
    """Records per second of bare aiokafka, and of a plain Faust agent, over the same topic."""
    return (
        measured("aiokafka", servers, topic, records),
        measured("plain_faust", servers, topic, records),
    )


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        click.echo(text)


def flow_environment(servers: str, directory: Path, kind: str) -> dict[str, str]:
    return {
        "K2_KAFKA_BOOTSTRAP_SERVERS": servers,
        "K2_APP_ID": f"k2-bench-{uuid.uuid4().hex[:8]}",
        "K2_DATA_DIR": str(directory / "data"),
        "K2_ROLES": "sink" if kind == "sink" else "validate,sink",
        "K2_BINANCE_ENABLED": "false",
        "K2_DEGRADATION_EXEMPT": "true",
        "K2_API_PORT": str(free_port()),
        "K2_LOG_LEVEL": os.environ.get("K2_LOG_LEVEL", "WARNING"),
    }


@contextlib.contextmanager
def environ(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


async def fill_topic(settings: Settings, kind: str, records: int) -> None:
    """Topics as K2 makes them, and the data set in the one that is read."""
    admin = KafkaAdmin(settings.kafka.bootstrap_servers, settings.kafka)
    await admin.ensure_topics(topic_specs(settings))
    epoch = (await admin.epochs([BINANCE_TRADES.log]))[BINANCE_TRADES.log]
    await admin.close()
    codecs = Codecs.open(open_registry(settings), MARKET_TOPICS)
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.kafka.bootstrap_servers,
        compression_type="lz4",
        max_batch_size=settings.kafka.max_message_bytes,
        max_request_size=settings.kafka.max_message_bytes,
        **aiokafka_options(settings.kafka),
    )
    await producer.start()
    try:
        writer = _Writer(producer, settings, kind, epoch)
        codec = codecs.of(BINANCE_TRADES.log)
        shape = Shape(records)
        if kind == "sink":
            shape = replace(shape, duplicates=0.0)
        for chunk in chunks(shape):
            await writer.write(chunk, codec.encode(chunk))
        await writer.finish()
    finally:
        await producer.stop()


class _Writer:
    """Records to their partitions in batches, as the source (or validation) writes them."""

    def __init__(self, producer: Any, settings: Settings, kind: str, epoch: str) -> None:
        self._producer = producer
        self._partitioner = Partitioner(settings.kafka.partitions)
        self._topic = BINANCE_TRADES.validated if kind == "sink" else BINANCE_TRADES.log
        self._epoch = epoch if kind == "sink" else ""
        self._next: dict[int, int] = {}
        self._pending: list[Any] = []

    async def write(self, batch: pa.RecordBatch, values: list[bytes]) -> None:
        symbols = batch.column("symbol")
        keys = [symbol.encode() for symbol in symbols.to_pylist()]
        for partition, rows in self._partitioner.rows(symbols):
            for start in range(0, len(rows), _BATCH):
                chosen = rows[start : start + _BATCH].tolist()
                out = OutBatch(
                    self._topic,
                    partition,
                    [values[i] for i in chosen],
                    [keys[i] for i in chosen],
                    headers=self._headers(partition, len(chosen)),
                )
                builder = self._producer.create_batch()
                fill(builder._builder, out)
                builder._relative_offset = len(out.values)
                builder.close()
                self._pending.append(
                    await self._producer.send_batch(builder, out.topic, partition=partition)
                )
        if len(self._pending) > 1_000:
            await self.finish()

    def _headers(self, partition: int, count: int) -> tuple[tuple[str, bytes], ...]:
        if not self._epoch:
            return ()
        first = self._next.get(partition, 0)
        self._next[partition] = first + count
        kept = np.arange(first, first + count, dtype=np.int64)
        return ((COVER_HEADER, Cover(self._epoch, first, first + count - 1, kept).to_bytes()),)

    async def finish(self) -> None:
        await asyncio.gather(*self._pending)
        self._pending.clear()


async def _watch(
    settings: Settings, directory: Path, kind: str, records: int
) -> tuple[list[Sample], dict[str, Any]]:
    """Run the worker until everything is stored; samples of its progress and its last status."""
    child = Child("worker", worker_command(), directory / "worker.log")
    await child.start()
    try:
        async with aiohttp.ClientSession() as http:
            base = f"http://127.0.0.1:{settings.api.port}"
            client = WorkerClient(http, base, settings.api.key.get_secret_value())
            await client.wait_ready(child, 60)
            process = psutil.Process(child.pid)
            samples: list[Sample] = []
            deadline = time.monotonic() + _LIMIT_S
            while time.monotonic() < deadline:
                child.check()
                status = await client.status()
                samples.append(_sample(process, status, kind))
                if status["drained"] and samples[-1].done >= (records if kind != "sink" else 1):
                    return samples, status
                await asyncio.sleep(_POLL_S)
        raise K2Error(f"the {kind} did not finish within {_LIMIT_S:.0f} s:\n{child.log_tail()}")
    finally:
        await child.stop(30)


def _sample(process: psutil.Process, status: dict[str, Any], kind: str) -> Sample:
    cpu, memory = process.cpu_times(), process.memory_info()
    # Of the records' own table: gap rows, which follow seconds later, are not records.
    stored = status["sink"]["tables"]["trades"]["rows"]
    # Dropped duplicates are work done too; counted by what has been committed or dropped.
    done = stored if kind == "sink" else stored + status["validate"]["duplicates"]
    return Sample(SYSTEM_CLOCK.monotonic_s(), done, cpu.user + cpu.system, memory.rss)


def _result(
    samples: list[Sample], status: dict[str, Any], raw: float, plain: float, records: int
) -> Result:
    # From the last moment without progress, so that starting is left out and reading is not.
    first = next(i for i, sample in enumerate(samples) if sample.done) - 1
    begin, end = samples[max(first, 0)], next(s for s in samples if s.done == samples[-1].done)
    rate = end.done / (end.at_s - begin.at_s)
    table = status["sink"]["tables"]["trades"]
    return Result(
        records=records,
        rows=table["rows"],
        records_per_s=round(rate),
        cpu_s_per_million=round((end.cpu_s - begin.cpu_s) / end.done * 1e6, 2),
        peak_rss_mb=round(max(sample.rss for sample in samples) / 2**20, 1),
        commits=table["commits"],
        files=table["files"],
        raw_per_s=round(raw),
        plain_faust_per_s=round(plain),
        ratio_to_raw=round(rate / raw, 3),
        ratio_to_plain_faust=round(rate / plain, 1),
        second_fifth_per_s=round(_part_rate(samples, begin, end, 0.2, 0.4)),
        last_fifth_per_s=round(_part_rate(samples, begin, end, 0.8, 1.0)),
        duplicates=status["validate"]["duplicates"],
        missing_ids=status["validate"]["missing_ids"],
        machine=machine(),
    )


def _part_rate(samples: list[Sample], begin: Sample, end: Sample, low: float, high: float) -> float:
    """Rate between two shares of the records, the times interpolated between samples."""
    return (
        (high - low)
        * end.done
        / (_time_at(samples, begin, end, high) - _time_at(samples, begin, end, low))
    )


def _time_at(samples: list[Sample], begin: Sample, end: Sample, share: float) -> float:
    wanted = share * end.done
    before = begin
    for sample in samples:
        if begin.at_s < sample.at_s <= end.at_s and sample.done > before.done:
            if sample.done >= wanted:
                part = (wanted - before.done) / (sample.done - before.done)
                return before.at_s + part * (sample.at_s - before.at_s)
            before = sample
    return end.at_s


def _command(kind: str, help_text: str) -> click.Command:
    @click.command(name=kind, help=help_text)
    @click.option("--json", "as_json", is_flag=True, help="End with one JSON object.")
    @click.option("--records", default=3_000_000, show_default=True, help="Records in the topic.")
    def command(as_json: bool, records: int) -> None:
        result = run(kind, records, quiet=as_json)
        if as_json:
            click.echo(jsonlib.dumps(asdict(result)))
            return
        for name, value in asdict(result).items():
            click.echo(f"{name:>22}: {value:,}" if not isinstance(value, str) else value)

    return command


sink = _command("sink", "Validated topic to lake, beside plain Faust and bare aiokafka.")
pipeline = _command("pipeline", "Log of record to lake: validate, deduplicate, store.")
