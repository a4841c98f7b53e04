"""Small lakes for the tests of maintenance: fill, read back, count files."""

from __future__ import annotations

from pathlib import Path

import duckdb

from k2.lake.tables import TRADES
from k2.lake.writer import LakeWriter
from k2.query.database import load_extensions, local_path
from tests.lake.rows import place, trades, upto

MANY = tuple(f"S{i:02d}USDT" for i in range(24))


def fill(catalog, commits, rows=48, start=0, symbols=MANY, writer=None, partition=0):
    """`commits` appends of `rows` each, ids from `start`; returns the next id."""
    writer = writer or LakeWriter(catalog, TRADES, wait=lambda _: None)
    for number in range(commits):
        low = start + number * rows
        writer.commit(
            trades(range(low, low + rows), symbols=symbols, partition=partition),
            {place(partition): upto(low) if low else None},
            {place(partition): upto(low + rows)},
        )
    return start + commits * rows


def rows_by_pyiceberg(catalog, snapshot_id=None):
    scan = catalog.load_table(TRADES.identifier).scan(snapshot_id=snapshot_id)
    return scan.to_arrow().sort_by("platform_sequence").to_pylist()


def stored(catalog, snapshot_id=None):
    scan = catalog.load_table(TRADES.identifier).scan(
        snapshot_id=snapshot_id, selected_fields=("platform_sequence",)
    )
    return sorted(scan.to_arrow()["platform_sequence"].to_pylist())


def rows_by_duckdb(catalog):
    location = local_path(catalog.load_table(TRADES.identifier).metadata_location)
    with duckdb.connect() as connection:
        load_extensions(connection)
        return connection.execute(
            "SELECT platform_sequence, symbol, price FROM iceberg_scan($1) "
            "ORDER BY platform_sequence",
            [location],
        ).fetchall()


def live_files(catalog):
    tasks = catalog.load_table(TRADES.identifier).scan().plan_files()
    return {task.file.file_path.removeprefix("file://"): task.file for task in tasks}


def on_disk(catalog, pattern="*.parquet"):
    location = catalog.load_table(TRADES.identifier).location().removeprefix("file://")
    return {str(path) for path in Path(location).rglob(pattern)}
