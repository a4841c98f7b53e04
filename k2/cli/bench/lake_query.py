"""A symbol's day as the lake holds it, beside the same rows written once and sorted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
from pyiceberg.catalog import Catalog

from k2.errors import LakeError
from k2.lake.files import symbol_bucket
from k2.lake.reader import LakeFile, LakeReader
from k2.lake.tables import TRADES
from k2.maintenance.plan import CompactionPolicy, Group
from k2.maintenance.rewrite import Rewriter
from k2.query.cold import field_id_schema
from k2.query.database import local_path, quote

_ROUNDS: Final = 40


def compare(catalog: Catalog) -> dict[str, Any]:
    """Median milliseconds of the query over both layouts, and their ratio; files and row groups."""
    reader = LakeReader(catalog)
    pinned = reader.current(TRADES)
    symbol = "S0000USDT"
    day = max(file.day for file in reader.files(pinned) if file.day is not None)
    bucket = symbol_bucket(symbol)
    files = [f for f in reader.files(pinned) if (f.day, f.bucket) == (day, bucket)]
    target = CompactionPolicy().target_bytes
    rewriter = Rewriter(TRADES, pinned.metadata, pinned.io, target)
    once = rewriter.rewrite(Group(day, bucket, tuple(files)), "written-once")
    paths = [file.file_path for file in once]
    with duckdb.connect() as connection:
        connection.execute("SET parquet_metadata_cache = true")
        connection.execute("SET threads = 2")
        queries = [_query(_paths(files), symbol), _query(paths, symbol)]
        lake_ms, once_ms = _medians(connection, queries)
    for path in paths:
        Path(local_path(path)).unlink()
    return {
        "query_ratio": round(lake_ms / once_ms, 2),
        "query_ms": round(lake_ms, 2),
        "query_once_ms": round(once_ms, 2),
        "query_files": len(files),
    }


def _paths(files: Sequence[LakeFile]) -> list[str]:
    return [file.path for file in files]


def _query(paths: Sequence[str], symbol: str) -> str:
    listed = ", ".join(quote(local_path(path)) for path in paths)
    scan = f"read_parquet([{listed}], schema = {field_id_schema(TRADES.arrow_schema)})"
    # Names of files and a symbol of our own making.
    return (
        "SELECT count(*), min(price), max(price), sum(quantity), min(timestamp), max(timestamp) "  # noqa: S608
        f"FROM {scan} WHERE symbol = {quote(symbol)}"
    )


def _medians(connection: duckdb.DuckDBPyConnection, queries: Sequence[str]) -> list[float]:
    """Medians in turn, so that what else the machine does meets both; the first runs warm up."""
    times: list[list[float]] = [[] for _ in queries]
    answers = [connection.execute(query).fetchall() for query in queries]
    if answers[0] != answers[1]:
        raise LakeError(f"both layouts must give one answer, but gave {answers}")
    for _ in range(_ROUNDS):
        for query, spent in zip(queries, times, strict=True):
            started_s = time.perf_counter()
            connection.execute(query).fetchall()
            spent.append((time.perf_counter() - started_s) * 1_000)
    return [float(np.median(spent)) for spent in times]
