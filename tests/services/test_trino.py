"""Trino, PyIceberg and DuckDB read the same lake and agree, also about its past."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
from pyiceberg.catalog import Catalog as Iceberg

from k2.dev.catalog import Catalog
from k2.dev.process import free_ports, running
from k2.dev.s3 import S3
from k2.dev.trino import Trino
from k2.hot import s3_access
from k2.lake.catalog import open_catalog
from k2.lake.history import vector_at
from k2.lake.tables import TRADES, ensure_tables
from k2.lake.vector import Vector
from k2.maintenance.keeper import Keeper, KeeperOptions
from k2.maintenance.plan import CompactionPolicy
from k2.query.database import open_database
from k2.settings import Settings
from tests.lake.rows import place, upto
from tests.maintenance.lakes import fill
from tests.services.lakes import lake_settings  # noqa: F401
from tests.services.require import require

SHIPPED = Path(__file__).parents[2] / "deploy" / "trino" / "catalog" / "k2.properties"

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(600),
    pytest.mark.parametrize("lake_settings", ["rest+s3"], indirect=True),
]

#: In words every engine knows; decimals, times and text come as text.
QUERIES = (
    "SELECT CAST(count(*) AS varchar), CAST(count(DISTINCT trade_id) AS varchar) FROM {table}",
    (
        "SELECT symbol, CAST(count(*) AS varchar), CAST(min(price) AS varchar), "
        "CAST(max(price) AS varchar), CAST(sum(quantity) AS varchar) "
        "FROM {table} GROUP BY symbol ORDER BY symbol"
    ),
    (
        "SELECT trade_id, symbol, CAST(price AS varchar), side, CAST(platform_sequence AS varchar) "
        "FROM {table} WHERE symbol = 'S03USDT' ORDER BY platform_sequence"
    ),
    (
        "SELECT CAST(count(*) AS varchar) FROM {table} "
        "WHERE timestamp >= TIMESTAMP '2024-08-09 00:00:00 UTC'"
    ),
    (
        "SELECT symbol, CAST(date_trunc('minute', timestamp) AT TIME ZONE 'UTC' AS date), "
        "CAST(max_by(price, platform_sequence) AS varchar) FROM {table} GROUP BY 1, 2 ORDER BY 1, 2"
    ),
)


@pytest.fixture(scope="module")
def trino(
    tmp_path_factory: pytest.TempPathFactory, rest_catalog: Catalog, s3_server: S3
) -> Iterator[Trino]:
    """Trino with the catalog file that is shipped."""
    require(Trino.missing())
    folder = tmp_path_factory.mktemp("trino")
    service = Trino(
        folder,
        {"port": free_ports(1)[0]},
        catalog=rest_catalog,
        s3=s3_server,
        properties=SHIPPED,
    )
    with running(service):
        yield service


@pytest.fixture
def iceberg(lake_settings: Settings) -> Iterator[Iceberg]:  # noqa: F811
    opened = open_catalog(lake_settings)
    ensure_tables(opened, "zstd")
    yield opened
    opened.close()


@pytest.fixture
def duck(lake_settings: Settings) -> Iterator[duckdb.DuckDBPyConnection]:  # noqa: F811
    """DuckDB's own Iceberg extension on the same store."""
    database = open_database(
        memory_limit_mb=256,
        threads=1,
        locations=["s3://warehouse"],
        s3=s3_access(lake_settings),
    )
    yield database
    database.close()


def by_duckdb(
    duck: duckdb.DuckDBPyConnection, iceberg: Iceberg, sql: str, snapshot_id: int
) -> list[list[Any]]:
    location = iceberg.load_table(TRADES.identifier).metadata_location
    scan = f"iceberg_scan('{location}', snapshot_from_id = {snapshot_id}::UBIGINT)"
    return texts(duck.execute(sql.format(table=scan)).fetchall())


def by_trino(trino: Trino, sql: str, snapshot_id: int) -> list[list[Any]]:
    table = f"k2.market_data.trades FOR VERSION AS OF {snapshot_id}"
    return texts(trino.query(sql.format(table=table)))


def texts(rows: list[Any]) -> list[list[Any]]:
    return [[str(value) for value in row] for row in rows]


def by_pyiceberg(iceberg: Iceberg, snapshot_id: int) -> list[dict[str, Any]]:
    scan = iceberg.load_table(TRADES.identifier).scan(snapshot_id=snapshot_id)
    return scan.to_arrow().sort_by("platform_sequence").to_pylist()


def test_three_engines_agree_about_now_and_then(
    trino: Trino, iceberg: Iceberg, duck: duckdb.DuckDBPyConnection
) -> None:
    table = iceberg.load_table
    end = fill(iceberg, 3)
    first = table(TRADES.identifier).current_snapshot().snapshot_id
    end = fill(iceberg, 4, start=end)
    keeper = Keeper(iceberg, TRADES, KeeperOptions(policy=CompactionPolicy(min_files=3)))
    assert keeper.compact().commits == 1
    merged = table(TRADES.identifier).current_snapshot().snapshot_id
    keeper.tag("quarter-end", str(first))
    end = fill(iceberg, 1, start=end)
    last = table(TRADES.identifier).current_snapshot().snapshot_id
    for snapshot_id, rows in ((first, 144), (merged, 336), (last, 384)):
        for sql in QUERIES:
            assert by_trino(trino, sql, snapshot_id) == by_duckdb(duck, iceberg, sql, snapshot_id)
        found = by_pyiceberg(iceberg, snapshot_id)
        assert [row["platform_sequence"] for row in found] == list(range(rows))
        (sums,) = trino.query(
            "SELECT count(*), CAST(sum(price) AS varchar) "
            f"FROM k2.market_data.trades FOR VERSION AS OF {snapshot_id}"
        )
        assert sums[0] == rows
        assert Decimal(sums[1]) == sum(row["price"] for row in found)
    tagged = trino.query(
        "SELECT count(*) FROM k2.market_data.trades FOR VERSION AS OF 'quarter-end'"
    )
    assert tagged == [[144]]


def test_what_trino_writes_keeps_the_vector(trino: Trino, iceberg: Iceberg) -> None:
    """Rows may be deleted by another engine; the sink goes on where it was."""
    end = fill(iceberg, 4)
    trino.query("DELETE FROM k2.market_data.trades WHERE timestamp < TIMESTAMP '2024-08-09 UTC'")
    trino.query("ALTER TABLE k2.market_data.trades EXECUTE optimize")
    metadata = iceberg.load_table(TRADES.identifier).metadata
    assert vector_at(metadata, metadata.current_snapshot()) == Vector({place(): upto(end)})
    left = len(by_pyiceberg(iceberg, metadata.current_snapshot_id))
    assert 0 < left < end
    fill(iceberg, 1, start=end)
    assert trino.query("SELECT count(*) FROM k2.market_data.trades") == [[left + 48]]
