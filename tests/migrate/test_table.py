"""V1 tables into V2: file by file, each row once, and never by guessing."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.utils.config import Config

from k2.cli.main import cli
from tests.e2e.harness import Stack

_SCHEMA = pa.schema(
    [
        pa.field("symbol", pa.string(), False),
        pa.field("company_id", pa.int32(), False),
        pa.field("exchange", pa.string(), False),
        pa.field("exchange_timestamp", pa.timestamp("us"), False),
        pa.field("price", pa.decimal128(18, 6), False),
        pa.field("volume", pa.int64(), False),
        pa.field("qualifiers", pa.int32(), False),
        pa.field("venue", pa.string(), False),
        pa.field("buyer_id", pa.string()),
        pa.field("ingestion_timestamp", pa.timestamp("us"), False),
        pa.field("sequence_number", pa.int64()),
    ]
)
_AT = dt.datetime(2014, 3, 10, 0, 0, 0, 123_000)  # noqa: DTZ001 - V1 has no zone


def rows(first: int, count: int) -> pa.Table:
    made = [
        {
            "symbol": "BHP",
            "company_id": 7078,
            "exchange": "ASX",
            "exchange_timestamp": _AT + dt.timedelta(milliseconds=number),
            "price": Decimal("37.12") + number,
            "volume": 100 + number,
            "qualifiers": 0,
            "venue": "",
            "ingestion_timestamp": _AT,
        }
        for number in range(first, first + count)
    ]
    return pa.Table.from_pylist(made, schema=_SCHEMA)


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """A V1 lake beside ours, with two files."""
    for name, value in (("URI", f"sqlite:///{tmp_path}/v1.db"), ("TYPE", "sql")):
        monkeypatch.setenv(f"PYICEBERG_CATALOG__V1__{name}", value)
    monkeypatch.setenv("PYICEBERG_CATALOG__V1__WAREHOUSE", f"file://{tmp_path}/v1")
    # PyIceberg reads its variables once, when it is first imported.
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())
    properties = {"uri": f"sqlite:///{tmp_path}/v1.db", "warehouse": f"file://{tmp_path}/v1"}
    made = load_catalog("v1", type="sql", **properties)
    made.create_namespace("market_data")
    table = made.create_table("market_data.trades", _SCHEMA)
    table.append(rows(0, 600))
    table.append(rows(600, 400))
    return made


def command(data_dir: Path, *more: str) -> list[str]:
    names = ["migrate", "v1", "trades", "market_data.trades", "--table", "--catalog", "v1"]
    return [*names, "--data-dir", str(data_dir), "--json", *more]


async def test_a_table_moves_in_parts_and_each_row_is_there_once(
    tmp_path: Path, catalog: Catalog
) -> None:
    data_dir = tmp_path / "data"
    asked = command(data_dir)
    async with Stack(tmp_path) as stack:
        looked = await stack.command(*asked, "--dry-run")
        assert (looked["records"], looked["sent"], looked["bad"]) == (1_000, 1_000, 0)
        first = await stack.command(*asked)
        assert (first["sent"], first["before"], first["stored"]) == (1_000, 0, 1_000)
        # Rows were appended meanwhile; and of one file it is not known how far it was brought.
        catalog.load_table("market_data.trades").append(rows(1_000, 10))
        notes = sorted((data_dir / "loads").glob("v1-????????????????.json"))
        assert len(notes) == 2
        notes[0].unlink()
        second = await stack.command(*asked)
        again = 1_010 - second["before"] - 10
        assert second["before"] in (400, 600)
        assert (second["sent"], second["stored"], second["duplicates"]) == (10 + again, 10, again)
        await stack.start_worker(K2_BINANCE_ENABLED="false")
        (row,) = await stack.sql(
            "select count(*) n, count(distinct trade_id) ids, sum(price)::varchar prices, "
            "epoch_ms(min(timestamp)) earliest, min(json_extract_string(vendor_data, "
            "'$.migrated_from')) origin from trades"
        )
        prices: Any = sum((Decimal("37.12") + number for number in range(1_010)), Decimal(0))
        assert row == {
            "n": 1_010,
            "ids": 1_010,
            "prices": f"{prices:.10f}",
            "earliest": 1_394_409_600_123,
            "origin": "market_data.trades",
        }
        await stack.stop_worker()
        # Written anew: its rows would be other rows.
        catalog.load_table("market_data.trades").overwrite(rows(0, 1_010))
        with pytest.raises(AssertionError, match="written anew since the last run"):
            await stack.command(*asked)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing.here", "--table", "--catalog", "v1"), "is not in the catalog"),
        (("t", "--table", "--catalog", "none_such"), "PYICEBERG_CATALOG__NONE_SUCH__URI"),
        (("t", "--table", "--follow"), "--follow is of topics"),
        (("t", "--catalog", "v1"), "--catalog of tables"),
    ],
)
def test_the_command_names_what_does_not_go(
    tmp_path: Path, catalog: Catalog, arguments: tuple[str, ...], said: str
) -> None:
    asked = ["migrate", "v1", "trades", *arguments, "--data-dir", str(tmp_path / "data")]
    result = CliRunner().invoke(cli, asked)
    assert result.exit_code != 0
    assert said in result.output
