"""Workers that start together on an empty PostgreSQL make catalog and tables together."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg2
import pytest

from k2.dev.postgres import USER, Postgres
from k2.lake.catalog import open_catalog
from k2.lake.tables import TABLES, ensure_tables
from k2.settings import load_settings

WORKERS = 6


@pytest.mark.parametrize("number", range(3))
def test_workers_open_a_fresh_catalog_together(
    postgres_server: Postgres, tmp_path, monkeypatch, number
) -> None:
    name = f"fresh_{number}"
    password = postgres_server.password
    address = {"host": "127.0.0.1", "port": postgres_server.port, "user": USER}
    connection = psycopg2.connect(**address, password=password, dbname="postgres")
    connection.autocommit = True
    connection.cursor().execute(f"create database {name}")
    connection.close()
    monkeypatch.setenv("K2_DATA_DIR", str(tmp_path))
    monkeypatch.setenv(
        "K2_ICEBERG_CATALOG_URI",
        f"postgresql+psycopg2://{USER}@127.0.0.1:{postgres_server.port}/{name}",
    )
    monkeypatch.setenv("K2_ICEBERG_CATALOG_PASSWORD", password)
    settings = load_settings()
    together = threading.Barrier(WORKERS)

    def start(_: int) -> set[str]:
        together.wait()
        catalog = open_catalog(settings)
        try:
            tables = ensure_tables(catalog, "zstd")
            return {f"{name} {table.metadata.table_uuid}" for name, table in tables.items()}
        finally:
            catalog.close()

    with ThreadPoolExecutor(WORKERS) as pool:
        found = list(pool.map(start, range(WORKERS)))
    assert all(tables == found[0] for tables in found)
    assert len(found[0]) == len(TABLES)
