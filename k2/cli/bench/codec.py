"""`k2 bench codec`: what a record costs between its bytes on the wire and its row in the lake.

In this process, on one thread, over batches of the size the transport hands out; records are
Binance trades with seven vendor entries. The best of the rounds counts: other work on the machine
only slows down.
"""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import fastavro
import numpy as np
import pyarrow as pa
import pyruhvro

from k2.cli.bench.dataset import Shape, chunks
from k2.cli.bench.machine import machine
from k2.codec.avro import Codec
from k2.codec.registry import FileRegistry
from k2.codec.schemas import schema_text
from k2.pipeline.rules import check
from k2.records import ids_of, to_lake
from k2.settings import Validate

_BATCH = 8_192
_REFERENCE = 1_000
_BAD = 100


@dataclass(frozen=True, slots=True)
class Result:
    """Microseconds per record of each step; `record_bytes` is the mean of a wire value."""

    decode: float
    decode_cut_header: float
    decode_one_percent_bad: float
    decode_fastavro: float
    encode: float
    rules: float
    ids: float
    to_lake: float
    records: int
    rounds: int
    record_bytes: float
    machine: str


def run(records: int = 200_000, rounds: int = 5) -> Result:
    """Measure every step."""
    with tempfile.TemporaryDirectory() as directory:
        registry = FileRegistry(Path(directory))
        codec = Codec.open(registry, "market.crypto.trades-value", schema_text("trades"))
    table = pa.Table.from_batches(chunks(Shape(records))).combine_chunks()
    batches = table.to_batches(max_chunksize=_BATCH)
    values = [codec.encode(batch) for batch in batches]
    spoilt = [[v[:-1] if i % _BAD == 0 else v for i, v in enumerate(part)] for part in values]
    text, limits = schema_text("trades"), Validate()

    def each(step: Callable[[int], object]) -> float:
        return _best(step, len(batches), rounds) / records * 1e6

    return Result(
        decode=each(lambda i: codec.decode(values[i])),
        decode_cut_header=each(
            lambda i: pyruhvro.deserialize_array([value[5:] for value in values[i]], text)
        ),
        decode_one_percent_bad=each(lambda i: codec.decode(spoilt[i])),
        decode_fastavro=_reference(values[0][:_REFERENCE]),
        encode=each(lambda i: codec.encode(batches[i])),
        rules=each(lambda i: check("trades", batches[i], limits)),
        ids=each(lambda i: ids_of("trades", batches[i])),
        to_lake=each(lambda i: _lake(batches[i])),
        records=records,
        rounds=rounds,
        record_bytes=round(sum(len(v) for part in values for v in part) / records, 1),
        machine=machine(),
    )


def _best(step: Callable[[int], object], count: int, rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        for index in range(count):
            step(index)
        best = min(best, time.perf_counter() - started)
    return best


def _lake(batch: pa.RecordBatch) -> pa.RecordBatch:
    return to_lake(
        "trades",
        batch,
        epoch="0b7c9a44-5a0e-4cf0-8f58-2f0d0a3c9f11",
        topic="market.crypto.trades.binance",
        partition=3,
        sequences=np.arange(batch.num_rows),
    )


def _reference(values: list[bytes]) -> float:
    schema = fastavro.parse_schema(json.loads(schema_text("trades")))

    def read(_: int) -> None:
        for value in values:
            fastavro.schemaless_reader(io.BytesIO(value[5:]), schema, None)

    return _best(read, 1, 2) / len(values) * 1e6


@click.command(short_help="Decode, encode, rules, ids, lake columns: µs per record.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--records", default=200_000, show_default=True, help="Trades to work on.")
@click.option("--rounds", default=5, show_default=True, help="Runs of each; the best counts.")
def codec(as_json: bool, records: int, rounds: int) -> None:
    """Measure decode, encode, rules, ids and lake columns, µs per record."""
    result = asdict(run(records, rounds))
    if as_json:
        click.echo(json.dumps(result))
        return
    for name, value in result.items():
        timed = isinstance(value, float) and name != "record_bytes"
        click.echo(f"{name:>24}: {f'{value:.3f} µs' if timed else value}")


if __name__ == "__main__":
    codec()
