"""`k2 query`: the same rows from a server and from a data directory, in every format."""

from __future__ import annotations

import asyncio
import csv
import datetime as dt
import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from k2.cli.main import cli
from k2.lake.tables import GAPS, QUOTES
from k2.query.sql import VIEWS
from tests.query.conftest import Platform
from tests.query.rows import EPOCH, T0_US, place, rows
from tests.web.api import Api
from tests.web.conftest import api

__all__ = ["api"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that a worker has left: ten trades and a quote."""
    made = Platform(tmp_path / "data", monkeypatch)
    made.commit(rows(range(10), [T0_US + i * 1_000_000 for i in range(10)]), place())
    made.commit(rows([4], [T0_US], table=QUOTES), place(kind="quotes"), kind="quotes")
    made.commit(gaps([5, 9]), place(kind="gaps"), kind="gaps")
    made.close()
    return tmp_path / "data"


def gaps(sequences: list[int]) -> pa.Table:
    """A gap of five ids before each of these records."""
    n = len(sequences)
    values: dict[str, Any] = {
        "message_id": [f"gap:{sequence}" for sequence in sequences],
        "detected_at": [dt.datetime(2024, 8, 9, tzinfo=dt.UTC)] * n,
        "symbol": ["BTCUSDT", "ETHUSDT"],
        "exchange": ["BINANCE"] * n,
        "data_type": ["trades"] * n,
        "event": ["opened"] * n,
        "expected": [100 * sequence for sequence in sequences],
        "received": [100 * sequence + 5 for sequence in sequences],
        "size": [5] * n,
        "how": ["jump"] * n,
        "log_epoch": [EPOCH] * n,
        "log_topic": [place(kind="gaps").topic] * n,
        "log_partition": [0] * n,
        "platform_sequence": sequences,
    }
    names = GAPS.arrow_schema.names
    return pa.table([pa.array(values[name]) for name in names], names).cast(GAPS.arrow_schema)


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


def test_quotes_with_what_may_be_asked_of_them(data: Path) -> None:
    asked = ("query", "quotes", "--data-dir", data, "--format", "json")
    (quote,) = objects(run(*asked, "--symbols", "btcusdt,ethusdt", "--exchange", "binance"))
    assert (quote["quote_id"], quote["bid_price"], quote["ask_quantity"]) == ("1000004", "1", "0.5")
    assert objects(run(*asked, "--from", "2024-08-09T00:00:00Z")) == []
    (few,) = objects(run(*asked, "--order", "asc", "--fields", "symbol,bid_price", "--limit", 1))
    assert few == {"symbol": "BTCUSDT", "bid_price": "1"}
    (snapshot,) = objects(
        run("query", "snapshots", "--data-dir", data, "--table", "quotes", "--format", "json")
    )
    assert len(objects(run(*asked, "--snapshot-id", snapshot["snapshot_id"]))) == 1
    assert "bid_price" in run(*asked[:4]).stdout.splitlines()[0]


def test_a_day_as_one_row(data: Path) -> None:
    asked = ("query", "summary", "--data-dir", data, "BTCUSDT")
    (day,) = objects(run(*asked, "2024-08-08", "--exchange", "binance", "--format", "json"))
    assert (day["open"], day["high"], day["close"], day["trade_count"]) == ("0", "2.25", "2.25", 10)
    before = run(*asked, "2024-08-08", "--as-of", "2024-01-01T00:00:00Z")
    assert before.exit_code == 1, "the lake had no snapshot then"
    none = run(*asked, "2024-08-07")
    assert (none.exit_code, none.stdout) == (1, "")
    assert "BTCUSDT has no trades on 2024-08-07" in none.stderr


def test_gaps_by_symbol_exchange_and_state(data: Path) -> None:
    asked = ("query", "gaps", "--data-dir", data, "--format", "json")
    found = objects(run(*asked))
    assert [(gap["symbol"], gap["missing"]) for gap in found] == [("ETHUSDT", 5), ("BTCUSDT", 5)]
    (bitcoin,) = objects(run(*asked, "--symbol", "BTCUSDT", "--exchange", "BINANCE"))
    assert (bitcoin["expected"], bitcoin["received"], bitcoin["state"]) == (500, 505, "open")
    assert objects(run(*asked, "--exchange", "KRAKEN")) == []
    assert objects(run(*asked, "--state", "closed")) == []
    assert len(objects(run(*asked, "--state", "all", "--limit", 1))) == 1


def test_every_view_can_be_asked_and_is_named(data: Path) -> None:
    shown = run("query", "sql", "--help").stdout
    for view in VIEWS:
        assert view in shown
        assert run("query", "sql", "--data-dir", data, f"select * from {view}").exit_code == 0


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
