"""Spark, PyIceberg and DuckDB read the same lake and agree, also about its past."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest

from k2.lake.catalog import open_catalog
from k2.lake.tables import TRADES, ensure_tables
from k2.maintenance.keeper import Keeper, KeeperOptions
from k2.maintenance.plan import CompactionPolicy
from k2.query.database import load_extensions, local_path
from k2.settings import load_settings
from tests.maintenance.lakes import fill, rows_by_pyiceberg
from tests.services import spark
from tests.services.require import require

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]

#: In words both engines know.
QUERIES = (
    "SELECT CAST(count(*) AS string), CAST(count(DISTINCT trade_id) AS string) FROM {table}",
    (
        "SELECT symbol, CAST(count(*) AS string), min(price), "
        "max(price), CAST(sum(quantity) AS decimal(38, 10)) "
        "FROM {table} GROUP BY symbol ORDER BY symbol"
    ),
    (
        "SELECT trade_id, symbol, price, side, CAST(platform_sequence AS string) "
        "FROM {table} WHERE symbol = 'S03USDT' ORDER BY trade_id"
    ),
    (
        "SELECT CAST(count(*) AS string) FROM {table} "
        "WHERE timestamp >= TIMESTAMP '2024-08-09 00:00:00 UTC'"
    ),
)


def plain(value: Any) -> Any:
    """As the script of Spark writes it: a decimal by its value alone."""
    return str(value.normalize()) if isinstance(value, Decimal) else value


def by_duckdb(metadata: str, questions: list[tuple[int, str]]) -> list[list[list[Any]]]:
    with duckdb.connect() as connection:
        load_extensions(connection)
        found = []
        for snapshot_id, sql in questions:
            table = f"iceberg_scan('{metadata}', snapshot_from_id = {snapshot_id}::UBIGINT)"
            rows = connection.execute(sql.format(table=table)).fetchall()
            found.append([[plain(value) for value in row] for row in rows])
        return found


def test_spark_agrees_about_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require(spark.missing())
    monkeypatch.setenv("K2_DATA_DIR", str(tmp_path / "data"))
    catalog = open_catalog(load_settings())
    ensure_tables(catalog, "zstd")
    end = fill(catalog, 3)
    first = catalog.load_table(TRADES.identifier).current_snapshot().snapshot_id
    end = fill(catalog, 4, start=end)
    keeper = Keeper(catalog, TRADES, KeeperOptions(policy=CompactionPolicy(min_files=3)))
    assert keeper.compact().commits == 1
    merged = catalog.load_table(TRADES.identifier).current_snapshot().snapshot_id
    fill(catalog, 1, start=end)
    table = catalog.load_table(TRADES.identifier)
    last = table.current_snapshot().snapshot_id
    metadata = local_path(table.metadata_location)

    questions = [(snapshot, sql) for snapshot in (first, merged, last) for sql in QUERIES]
    answers = spark.ask(metadata, [(s, sql.format(table="trades")) for s, sql in questions])

    assert answers == by_duckdb(metadata, questions)
    for snapshot, rows, answer in zip(
        (first, merged, last), (144, 336, 384), answers[:: len(QUERIES)], strict=True
    ):
        stored = rows_by_pyiceberg(catalog, snapshot)
        assert len(stored) == rows
        assert answer == [[str(rows), str(len({row["trade_id"] for row in stored}))]]
    catalog.close()
