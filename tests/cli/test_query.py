"""`k2 query`: the same rows from a server and from a data directory, in every format."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from k2.cli.main import cli
from tests.query.conftest import Platform
from tests.query.rows import T0_US, place, rows
from tests.web.api import Api
from tests.web.conftest import api

__all__ = ["api"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that a worker has left: ten trades and a quote."""
    made = Platform(tmp_path / "data", monkeypatch)
    made.commit(rows(range(10), [T0_US + i * 1_000_000 for i in range(10)]), place())
    made.close()
    return tmp_path / "data"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(one) for one in arguments])


def objects(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_directory_answers_without_a_worker(data: Path, tmp_path: Path) -> None:
    where = ("--data-dir", data)
    found = objects(run("query", "trades", *where, "--symbol", "btcusdt", "--format", "json"))
    assert [row["platform_sequence"] for row in found] == [*range(9, -1, -1)]
    assert found[0]["price"] == "2.25"
    shown = run("query", "ohlcv", *where, "--symbol", "BTCUSDT", "--timeframe", "1h")
    assert "2024-08-08T23:00:00" in shown.stdout
    assert "10" in shown.stdout
    text = run("query", "sql", *where, "select count(*) as n from trades", "--format", "csv").stdout
    assert [*csv.reader(io.StringIO(text))] == [["n"], ["10"]]
    file = tmp_path / "trades.parquet"
    assert run("query", "trades", *where, "--format", "parquet", "--output", file).exit_code == 0
    assert pq.read_table(file)["price"].to_pylist()[0] == Decimal("2.25")
    for question in (["symbols"], ["snapshots"], ["gaps"], ["summary", "BTCUSDT", "2024-08-08"]):
        result = run("query", *question, *where)
        assert result.exit_code == 0, result.stderr
    assert (
        len(objects(run("query", "asof", *where, "--symbol", "BTCUSDT", "--format", "json"))) == 10
    )


async def test_a_server_gives_the_same_and_its_hot_rows(api: Api) -> None:
    asked = ("query", "trades", "--url", api.client.make_url(""), "--key", "right", "--limit", 12)
    found = objects(await asyncio.to_thread(run, *asked, "--format", "json"))
    assert [row["platform_sequence"] for row in found] == [*range(14, 2, -1)]
    table = await asyncio.to_thread(run, *asked)
    assert table.stdout.splitlines()[0].split()[:2] == ["trade_id", "symbol"]
    assert "12 rows" in table.stderr


def test_what_is_wrong_is_one_line(data: Path, tmp_path: Path) -> None:
    nothing = run("query", "trades", "--data-dir", tmp_path / "nothing")
    assert (nothing.exit_code, nothing.stdout) == (1, "")
    assert "holds no lake" in nothing.stderr
    assert not (tmp_path / "nothing").exists(), "asking makes nothing"
    both = run("query", "trades", "--data-dir", data, "--url", "http://x")
    assert both.exit_code == 2
    refused = run("query", "ohlcv", "--data-dir", data, "--symbol", "XYZ")
    assert "XYZ has no trades" in refused.stderr
