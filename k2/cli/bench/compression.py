"""`k2 bench compression`: what a lake's rows weigh under each codec, and what writing costs.

The rows are those of a lake that is there (load a recording first), written as the compaction
writes them: sorted, encoded, in one file per partition. Nothing in the lake is changed.
"""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any, Final

import click
import pyarrow as pa
import pyarrow.parquet as pq

from k2.cli.bench.machine import machine
from k2.errors import LakeError
from k2.lake.catalog import open_catalog
from k2.lake.columns import conform
from k2.lake.files import parquet_options
from k2.lake.reader import LakeReader, Pinned
from k2.lake.tables import TABLES, TableDef
from k2.maintenance.merge import sort_rows
from k2.settings import load_settings

_CODECS: Final = (
    ("none", None), ("snappy", None), ("lz4", None), ("zstd", 1), ("zstd", 3), ("zstd", 6),
    ("zstd", 9),
)  # fmt: skip
_ROUNDS: Final = 5


def measure(table: TableDef, rows: pa.Table, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Bytes per row and the best time of some rounds for each codec."""
    results = []
    for codec, level in _CODECS:
        chosen = {**options, **_chosen(options["compression"], codec, level)}
        content, write_s = None, float("inf")
        for _ in range(_ROUNDS):
            sink = pa.BufferOutputStream()
            started_s = time.process_time()
            pq.write_table(rows, sink, **chosen)
            write_s = min(write_s, time.process_time() - started_s)
            content = sink.getvalue()
        read_s = min(_read_s(content) for _ in range(_ROUNDS))
        results.append(
            {
                "table": table.name,
                "codec": codec if level is None else f"{codec}-{level}",
                "bytes": content.size if content else 0,
                "bytes_per_row": round((content.size if content else 0) / rows.num_rows, 2),
                "write_us_per_row": round(write_s * 1e6 / rows.num_rows, 3),
                "read_us_per_row": round(read_s * 1e6 / rows.num_rows, 3),
            }
        )
    plain = results[0]["bytes"]
    for found in results:
        found["to_uncompressed"] = round(plain / found["bytes"], 2)
    return results


def _chosen(codecs: dict[str, str], codec: str, level: int | None) -> dict[str, Any]:
    """Another codec for the columns that are compressed at all."""
    compressed = [name for name, used in codecs.items() if used != "none"]
    levels = None if level is None else dict.fromkeys(compressed, level)
    return {
        "compression": {**codecs, **dict.fromkeys(compressed, codec)},
        "compression_level": levels,
    }


def _read_s(content: Any) -> float:
    started_s = time.process_time()
    pq.read_table(pa.BufferReader(content), use_threads=False)
    return time.process_time() - started_s


def rows_of(pinned: Pinned, reader: LakeReader) -> pa.Table:
    """All rows of a pinned snapshot, sorted as one file."""
    parts = []
    for file in reader.files(pinned):
        with pinned.io.new_input(file.path).open() as stream:
            parts.append(conform(pq.read_table(stream), pinned.table.arrow_schema))
    return sort_rows(pa.concat_tables(parts), pinned.table.sort_columns)


def raw_bytes(frames: tuple[Path, ...]) -> int:
    """Bytes of recorded frames, unpacked."""
    total = 0
    for path in frames:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            while block := stream.read(1 << 20):
                total += len(block)
    return total


@click.command()
@click.option(
    "--frames",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="The recordings the lake was filled from, to compare with; may be given again.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def compression(frames: tuple[Path, ...], as_json: bool) -> None:
    """Measure codecs on the trades and quotes of the lake in K2_DATA_DIR."""
    catalog = open_catalog(load_settings())
    reader = LakeReader(catalog)
    results: list[dict[str, Any]] = []
    rows = 0
    for name in ("trades", "quotes"):
        pinned = reader.current(TABLES[name])
        if pinned.snapshot_id is None:
            continue
        found = rows_of(pinned, reader)
        rows += found.num_rows
        results += measure(TABLES[name], found, parquet_options(TABLES[name], pinned.metadata))
    raw = raw_bytes(frames)
    if not rows:
        raise LakeError(
            "the lake in K2_DATA_DIR has no trades or quotes; load a recording first "
            "(k2 demo --capture FILE --speed max --until-drained)"
        )
    against = _against(raw, results)
    summary = {
        "rows": rows,
        "raw_bytes": raw,
        "raw_to_parquet": against,
        "codecs": results,
        "machine": machine(),
    }
    if as_json:
        click.echo(json.dumps(summary))
        return
    click.echo(f"rows {rows:,}; raw frames {raw:,} bytes")
    for one in results:
        click.echo("  ".join(f"{value!s:>9}" for value in one.values()))
    for codec, times in against.items():
        click.echo(f"raw frames : {codec} = {times}")


def _against(raw: int, results: list[dict[str, Any]]) -> dict[str, float]:
    """How many times smaller than the raw frames all tables together are, by codec."""
    totals: dict[str, int] = {}
    for one in results:
        totals[one["codec"]] = totals.get(one["codec"], 0) + one["bytes"]
    return {codec: round(raw / total, 2) for codec, total in totals.items() if raw}
