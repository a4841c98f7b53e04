"""Queries over a lake on S3 and hot rows, through DuckDB's httpfs."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import duckdb
import pyarrow as pa
import pytest

from k2.hot import s3_access
from k2.query.database import open_database
from k2.settings import Settings
from tests.query.conftest import Platform
from tests.query.rows import T0_US, place, rows
from tests.services.lakes import lake_settings  # noqa: F401

pytestmark = pytest.mark.parametrize("lake_settings", ["rest+s3", "postgres+s3"], indirect=True)


@pytest.fixture
async def platform(
    lake_settings: Settings,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Platform]:
    made = Platform(lake_settings.core.data_dir, monkeypatch)
    yield made
    made.close()


COUNTS = "select count(*) n, count(distinct trade_id) ids from trades"


def some(sequences: range) -> pa.Table:
    return rows(sequences, [T0_US + 1_000 * one for one in sequences])


async def test_hot_and_cold_rows_are_one_answer(platform: Platform) -> None:
    platform.commit(some(range(30)), place())
    platform.produce(some(range(20, 50)), place())
    platform.refresh()
    answer = await platform.engine.sql(COUNTS, limit=10)
    assert answer.rows.to_pylist() == [{"n": 50, "ids": 50}]


async def test_secrets_are_in_no_log_statement_or_error(
    platform: Platform,
    lake_settings: Settings,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    access = s3_access(lake_settings)
    assert access is not None
    secrets = (access.secret, access.key_id)
    assert access.secret not in repr(access)
    caplog.set_level(logging.DEBUG)
    database = open_database(memory_limit_mb=64, threads=1, locations=["s3://warehouse"], s3=access)
    told = str(database.execute("from duckdb_secrets()").fetchall())
    with pytest.raises(duckdb.Error) as caught:
        database.execute("from read_parquet('s3://warehouse/nothing.parquet')")
    database.close()
    assert access.secret not in told
    assert not any(secret in str(caught.value) + caplog.text for secret in secrets)


async def test_a_wrong_key_is_an_error_that_names_no_secret(lake_settings: Settings) -> None:  # noqa: F811
    access = s3_access(lake_settings)
    assert access is not None
    wrong = type(access)(access.endpoint, access.key_id, "not-the-secret", access.region)
    database = open_database(memory_limit_mb=64, threads=1, locations=["s3://warehouse"], s3=wrong)
    with pytest.raises(duckdb.Error, match="403") as caught:
        database.execute("from read_parquet('s3://warehouse/nothing.parquet')")
    database.close()
    assert "not-the-secret" not in str(caught.value)
