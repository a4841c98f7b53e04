"""How fast records come out of Kafka: plain Faust, K2's transport, aiokafka alone.

All three read the same topic, one after the other, each in an interpreter of its own. A rate is
records per second from the first delivery to the last; starting and joining are left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import json as jsonlib
import random
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import click
from aiokafka import AIOKafkaProducer
from aiokafka.partitioner import murmur2
from confluent_kafka.admin import AdminClient

from k2.cli.bench.machine import machine
from k2.errors import LogError
from k2.settings import settings
from k2.testing.kafka import running_kafka
from k2.transport.admin import TopicSpec
from k2.transport.batch import OutBatch
from k2.transport.kafka_admin import KafkaAdmin
from k2.transport.producer import fill
from k2.transport.security import aiokafka_options, librdkafka_options

WORKERS = ("plain_faust", "k2", "aiokafka")
_SYMBOLS = 100
#: Records in one record batch of the test topic.
_BATCH = 500
#: Plain Faust reads this part of the topic: its rate is steady and the rest would only take time.
_PLAIN_SHARE = 10
_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Result:
    """Records per second of each reader, and what it was measured on."""

    plain_faust: float
    k2: float
    aiokafka: float
    ratio_to_plain_faust: float
    ratio_to_aiokafka: float
    records: int
    record_bytes: int
    partitions: int
    rounds: int
    machine: str


def run(
    json: bool = False,
    records: int = 1_000_000,
    record_bytes: int = 350,
    partitions: int = 16,
    rounds: int = 3,
) -> Result:
    """Measure; the best of `rounds` counts, since other work on the machine only slows down."""
    with own_kafka() as servers:
        topic = f"k2.bench.transport.{uuid.uuid4().hex[:8]}"
        asyncio.run(_load(servers, topic, records, record_bytes, partitions))
        rates = dict.fromkeys(WORKERS, 0.0)
        for _ in range(rounds):
            for name in WORKERS:
                rate = measured(name, servers, topic, records)
                rates[name] = max(rates[name], rate)
                if not json:
                    click.echo(f"{name:>12}: {rate:>12,.0f} records/s")
    return Result(
        plain_faust=round(rates["plain_faust"]),
        k2=round(rates["k2"]),
        aiokafka=round(rates["aiokafka"]),
        ratio_to_plain_faust=round(rates["k2"] / rates["plain_faust"], 2),
        ratio_to_aiokafka=round(rates["k2"] / rates["aiokafka"], 3),
        records=records,
        record_bytes=record_bytes,
        partitions=partitions,
        rounds=rounds,
        machine=machine(),
    )


def _rates(servers: str, topic: str, records: int, rounds: int, *, quiet: bool) -> dict[str, float]:
    rates = dict.fromkeys(WORKERS, 0.0)
    for _ in range(rounds):
        for name in WORKERS:
            rate = measured(name, servers, topic, records)
            rates[name] = max(rates[name], rate)
            if not quiet:
                click.echo(f"{name:>12}: {rate:>12,.0f} records/s")
    return rates


def _delete(servers: str, topic: str) -> None:
    options = librdkafka_options(settings().kafka)
    admin = AdminClient({"bootstrap.servers": servers, **options})
    for future in admin.delete_topics([topic]).values():
        future.result()


@contextlib.contextmanager
def own_kafka() -> Iterator[str]:
    configured = settings().kafka.bootstrap_servers
    if configured:
        yield configured
        return
    with running_kafka(heap="1g") as server:
        yield server.bootstrap


def measured(name: str, servers: str, topic: str, records: int) -> float:
    wanted = records // _PLAIN_SHARE if name == "plain_faust" else records
    command = [sys.executable, "-m", "k2.cli.bench.transport_worker"]
    # Faust makes its data directory where it is started.
    with tempfile.TemporaryDirectory(prefix="k2-bench-") as directory:
        done = subprocess.run(  # noqa: S603 - our own interpreter
            [*command, name, servers, topic, str(wanted)],
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
            cwd=directory,
        )
    if done.returncode:
        raise LogError(f"the reader {name} failed: {done.stderr.strip()[-2000:]}")
    return float(done.stdout.strip().splitlines()[-1])


async def _load(servers: str, topic: str, records: int, record_bytes: int, partitions: int) -> None:
    """Fill the topic with records like trades: skewed symbols, text that compresses about 3:1."""
    kafka = settings().kafka
    admin = KafkaAdmin(servers, kafka)
    await admin.ensure_topics([TopicSpec(topic, partitions)])
    await admin.close()
    producer = AIOKafkaProducer(
        bootstrap_servers=servers,
        compression_type="lz4",
        max_batch_size=kafka.max_message_bytes,
        max_request_size=kafka.max_message_bytes,
        **aiokafka_options(kafka),
    )
    await producer.start()
    try:
        pending: list[Any] = []
        for batch in _batches(topic, records, record_bytes, partitions):
            builder = producer.create_batch()
            fill(builder._builder, batch)
            builder._relative_offset = len(batch.values)
            builder.close()
            pending.append(
                await producer.send_batch(builder, batch.topic, partition=batch.partition)
            )
        await asyncio.gather(*pending)
    finally:
        await producer.stop()


def _batches(topic: str, records: int, record_bytes: int, partitions: int) -> Iterator[OutBatch]:
    rng = random.Random(1)  # noqa: S311 - test data
    symbols = [f"SYM{n}USDT".encode() for n in range(_SYMBOLS)]
    weights = [1 / (n + 1) for n in range(_SYMBOLS)]
    waiting: dict[int, OutBatch] = {}
    for number, key in enumerate(rng.choices(symbols, weights, k=records)):
        partition = (murmur2(key) & 0x7FFFFFFF) % partitions
        batch = waiting.setdefault(partition, OutBatch(topic, partition, [], []))
        batch.keys.append(key)
        batch.values.append(_value(rng, number, key, record_bytes))
        if len(batch.values) == _BATCH:
            yield waiting.pop(partition)
    yield from waiting.values()


def _value(rng: random.Random, number: int, key: bytes, record_bytes: int) -> bytes:
    head = b"%d:BINANCE:%d:%s:%d.%d" % (number, 1_700_000_000_000 + number, key, *_price(rng))
    filler = b"crypto BUY is_buyer_maker:true event_time:1723161255343 base_asset:BTC "
    noise = rng.randbytes(record_bytes // 8).hex().encode()
    return (head + noise + filler * 8)[:record_bytes].ljust(record_bytes, b" ")


def _price(rng: random.Random) -> tuple[int, int]:
    return rng.randrange(100_000), rng.randrange(100_000_000)


@click.command(short_help="Record batches beside plain Faust and bare aiokafka.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
@click.option("--records", default=1_000_000, show_default=True, help="Records in the topic.")
@click.option("--size", default=350, show_default=True, help="Bytes of a record's value.")
@click.option("--partitions", default=16, show_default=True, help="Partitions of the topic.")
@click.option("--rounds", default=3, show_default=True, help="Runs of each; the best counts.")
def transport(as_json: bool, records: int, size: int, partitions: int, rounds: int) -> None:
    """Plain Faust, K2's record batches and a bare aiokafka loop, side by side on one topic."""
    result = run(as_json, records, size, partitions, rounds)
    if as_json:
        click.echo(jsonlib.dumps(asdict(result)))
        return
    click.echo(
        f"K2 {result.k2:,.0f} records/s: {result.ratio_to_plain_faust:.1f} x plain Faust, "
        f"{result.ratio_to_aiokafka:.0%} of aiokafka alone "
        f"({records:,} records of {size} bytes, {partitions} partitions, {result.machine})"
    )
