"""The DuckDB under all queries: one in-memory database, closed before any user's SQL reaches it."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from k2.errors import ConfigError

#: Loaded in this order (httpfs and iceberg need avro); the wheels hold the files, so no network.
_EXTENSIONS = ("avro", "httpfs", "iceberg")

#: sum(p * q) / sum(q), rounded half up to 8 decimals. Decimals divided by DuckDB become floating
#: point, so the sums are divided as integers, which only text leads to without a loss: a
#: decimal(38,20) prints all its 20 decimals.
_VWAP = """
CREATE MACRO vwap(price, quantity) AS (
  CASE WHEN sum(quantity) = 0 THEN NULL ELSE CAST(
    (2 * CAST(replace(CAST(sum(
            CAST(price AS DECIMAL(28, 10)) * CAST(quantity AS DECIMAL(28, 10))
          ) AS VARCHAR), '.', '') AS HUGEINT)
       + 100 * CAST(10000000000 * sum(CAST(quantity AS DECIMAL(28, 10))) AS HUGEINT))
    // (200 * CAST(10000000000 * sum(CAST(quantity AS DECIMAL(28, 10))) AS HUGEINT))
    AS DECIMAL(30, 0)) * 0.00000001 END)
"""


@dataclass(frozen=True, slots=True)
class S3Access:
    """How DuckDB reaches a warehouse on S3. `endpoint`: `http(s)://host:port`; empty: AWS."""

    endpoint: str
    key_id: str
    secret: str = field(repr=False)
    region: str


def open_database(
    *,
    memory_limit_mb: int,
    threads: int,
    locations: Iterable[str],
    s3: S3Access | None = None,
    iceberg: bool = True,
) -> duckdb.DuckDBPyConnection:
    """A database that can read files below `locations` and nothing else, its settings locked.

    `locations`: directories or `s3://bucket/prefix` of the lake. `iceberg`: load what
    `iceberg_scan` needs for snapshots with delete files (0.35 s; the settings are locked, so it
    cannot be done later). Temporary tables and spilling to disk are
    off: a query over the memory limit fails instead of filling the disk.
    """
    connection = duckdb.connect(
        ":memory:",
        config={
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "python_enable_replacements": "false",
            "allow_community_extensions": "false",
            "memory_limit": f"{memory_limit_mb}MB",
            "threads": str(threads),
            "temp_directory": "",
            "preserve_insertion_order": "true",
        },
    )
    connection.execute("SET GLOBAL TimeZone = 'UTC'")
    # Data files never change: footers and blocks read once need no second look.
    connection.execute("SET GLOBAL parquet_metadata_cache = true")
    connection.execute("SET GLOBAL validate_external_file_cache = 'NO_VALIDATION'")
    if s3 is not None or iceberg:
        load_extensions(connection)
    if s3 is not None:
        _create_secret(connection, s3)
    connection.execute(_VWAP)
    places = [_directory(location) for location in locations]
    connection.execute(f"SET allowed_directories = [{', '.join(quote(p) for p in places)}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def load_extensions(connection: duckdb.DuckDBPyConnection) -> None:
    """Load the extension wheels. Raises `ConfigError` when one is missing or of another version."""
    for name in _EXTENSIONS:
        try:
            module = importlib.import_module(f"duckdb_extension_{name}")
        except ImportError as exc:
            raise ConfigError(
                f"the package duckdb-extension-{name} is not installed; install it in the version "
                f"of duckdb, {duckdb.__version__}"
            ) from exc
        path = Path(str(module.__file__)).parent / "extensions" / f"v{duckdb.__version__}"
        file = path / f"{name}.duckdb_extension"
        if not file.exists():
            raise ConfigError(
                f"duckdb-extension-{name} holds no extension for duckdb {duckdb.__version__}; "
                "both must have the same version"
            )
        connection.execute(f"LOAD {quote(str(file))}")


def quote(text: str) -> str:
    """A SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def local_path(location: str) -> str:
    """DuckDB's spelling of a file of the lake: plain paths instead of `file://`."""
    if location.startswith("file:"):
        return "/" + location.removeprefix("file:").lstrip("/")
    return location.replace("s3a://", "s3://", 1) if location.startswith("s3a://") else location


def _directory(location: str) -> str:
    return local_path(location).rstrip("/") + "/"


def _create_secret(connection: duckdb.DuckDBPyConnection, s3: S3Access) -> None:
    """By parameters: what is secret must not be part of a statement, which errors would quote."""
    scheme, _, host = s3.endpoint.rpartition("://")
    options = {"KEY_ID": s3.key_id, "SECRET": s3.secret, "REGION": s3.region, "ENDPOINT": host}
    given = {name: value for name, value in options.items() if value}
    # AWS itself wants the bucket in the host name; servers of one's own rarely know it there.
    style = "URL_STYLE 'path', " if host else ""
    connection.execute(
        f"CREATE SECRET lake (TYPE s3, {', '.join(f'{name} ${name}' for name in given)}, {style}"
        f"USE_SSL {'false' if scheme == 'http' else 'true'})",
        given,
    )
