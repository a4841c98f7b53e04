"""Rows for people and programs: a table, CSV, JSON or Parquet."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import Any, Final

import click
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from k2.query.encode import JSON_COLUMNS, rows_of

FORMATS: Final = ("table", "csv", "json", "parquet")
#: Rows encoded at once.
_PIECE_ROWS: Final = 10_000
#: On a terminal a record's place and our clocks leave no room for what was asked for.
_UNSHOWN: Final = frozenset(
    {
        "message_id",
        "asset_class",
        "receive_timestamp",
        "ingestion_timestamp",
        "currency",
        "trade_conditions",
        "source_sequence",
        "vendor_data",
        "is_backfill",
        "log_epoch",
        "log_topic",
        "log_partition",
    }
)


def render(rows: pa.Table, shape: str, output: Path | None, *, wide: bool) -> None:
    """Write `rows` to a file or standard output; decimals as text, times as ISO 8601."""
    if shape == "table":
        _table(rows if wide else _narrowed(rows), output)
        return
    if shape == "parquet" and output is None and sys.stdout.isatty():
        raise click.UsageError("Parquet is no text: give --output FILE, or redirect the output")
    stream = click.open_file(str(output) if output else "-", "wb")
    with stream as out:
        _WRITERS[shape](rows, out)


def _narrowed(rows: pa.Table) -> pa.Table:
    names = [name for name in rows.column_names if name not in _UNSHOWN]
    return rows.select(names) if names else rows


def _table(rows: pa.Table, output: Path | None) -> None:
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for field in rows.schema:
        number = pa.types.is_decimal(field.type) or pa.types.is_integer(field.type)
        shown.add_column(field.name, justify="right" if number else "left", no_wrap=True)
    for row in rows_of(rows):
        shown.add_row(*("" if value is None else str(value) for value in row.values()))
    if output is not None:
        with output.open("w", encoding="utf-8") as file:
            Console(file=file, width=10_000, markup=False, highlight=False).print(shown)
        return
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 10_000
    console.print(shown)
    click.echo(f"{rows.num_rows:,} {'row' if rows.num_rows == 1 else 'rows'}", err=True)


def _pieces(rows: pa.Table) -> Any:
    for first in range(0, rows.num_rows, _PIECE_ROWS):
        yield rows.slice(first, _PIECE_ROWS)


def _csv(rows: pa.Table, out: Any) -> None:
    text = io.TextIOWrapper(out, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text)
    writer.writerow(rows.column_names)
    for piece in _pieces(rows):
        writer.writerows([_cell(v) for v in row.values()] for row in rows_of(piece))
    text.detach()


def _cell(value: Any) -> Any:
    return orjson.dumps(value).decode() if isinstance(value, list | dict | bool) else value


def _json(rows: pa.Table, out: Any) -> None:
    """One object per line."""
    for piece in _pieces(rows):
        for row in rows_of(piece, parse_json=JSON_COLUMNS):
            out.write(orjson.dumps(row) + b"\n")


def _parquet(rows: pa.Table, out: Any) -> None:
    pq.write_table(rows.replace_schema_metadata(None), out, compression="zstd")


_WRITERS: Final = {"csv": _csv, "json": _json, "parquet": _parquet}
