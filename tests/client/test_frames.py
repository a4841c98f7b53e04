"""Answers as data frames: the rows, their times and every digit of their decimals."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pandas as pd
import polars as pl
import pytest

from k2.client import K2Client, Rows
from k2.errors import ConfigError
from tests.query.rows import T0_US, place, rows
from tests.web.api import Api

#: More digits than a double has.
PRICE = Decimal("123456789012345678.0123456789")
TIME = dt.datetime(2024, 8, 8, 23, 58, 20, 1, tzinfo=dt.UTC)


@pytest.fixture
async def found(api: Api, client: K2Client) -> Rows:
    made = rows([20], [T0_US + 1], symbols="EXACT", prices=[PRICE], vendor_data='{"m":"1"}')
    api.platform.produce(made, place())
    return await client.trades("EXACT")


def test_pandas_keeps_times_and_every_digit(found: Rows) -> None:
    frame = found.to_pandas()
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == found.table.column_names
    assert frame["timestamp"].dtype == pd.DatetimeTZDtype("us", "UTC")
    assert frame["platform_sequence"].dtype == "int64"
    row = frame.iloc[0]
    assert (row["price"], row["quantity"]) == (PRICE, Decimal("0.5"))
    assert isinstance(row["price"], Decimal)
    assert row["timestamp"] == pd.Timestamp(TIME)
    assert (frame["price"] * 3).iloc[0] == PRICE * 3, "and so do figures made of them"


def test_polars_keeps_times_and_every_digit(found: Rows) -> None:
    frame = found.to_polars()
    assert isinstance(frame, pl.DataFrame)
    assert frame.schema["price"] == pl.Decimal(28, 10)
    assert frame.schema["timestamp"] == pl.Datetime("us", "UTC")
    assert frame.schema["platform_sequence"] == pl.Int64
    row = frame.row(0, named=True)
    assert (row["price"], row["quantity"]) == (PRICE, Decimal("0.5"))
    assert row["timestamp"] == TIME
    assert row["trade_conditions"] == []


@pytest.mark.parametrize("name", ["pandas", "polars"])
def test_what_is_not_installed_is_said(
    found: Rows, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ConfigError, match=f"{name} is not installed"):
        getattr(found, f"to_{name}")()
