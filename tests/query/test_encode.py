from __future__ import annotations

import datetime as dt
from decimal import Decimal

import duckdb
import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2.decimals import plain
from k2.query.encode import column_types, rows_of


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("61837.6300000000", "61837.63"),
        ("100", "100"),
        ("100.0000000000", "100"),
        ("0E-10", "0"),
        ("-0.0000000000", "0"),
        ("1E-10", "0.0000000001"),
        ("1E+20", "100000000000000000000"),
        ("-12.50", "-12.5"),
    ],
)
def test_plain_text(value: str, text: str) -> None:
    assert plain(Decimal(value)) == text


@given(st.decimals(-(10**27), 10**27, places=10))
def test_decimals_survive(value: Decimal) -> None:
    column = pa.array([value], pa.decimal128(38, 10))
    (row,) = orjson.loads(orjson.dumps(rows_of(pa.table({"x": column}))))
    assert Decimal(row["x"]) == value
    assert "E" not in row["x"].upper()


@given(st.datetimes(timezones=st.just(dt.UTC)))
def test_timestamps_survive(value: dt.datetime) -> None:
    (row,) = rows_of(pa.table({"x": pa.array([value], pa.timestamp("us", "UTC"))}))
    assert row["x"].endswith("Z")
    assert len(row["x"]) == len("2024-08-08T23:54:15.342000Z")
    assert dt.datetime.fromisoformat(row["x"]) == value


def test_vendor_data_is_an_object_again() -> None:
    table = pa.table({"vendor_data": ['{"m": "1"}', None, "not json"], "other": ['{"a":1}'] * 3})
    found = rows_of(table, parse_json=frozenset({"vendor_data"}))
    assert [row["vendor_data"] for row in found] == [{"m": "1"}, None, "not json"]
    assert found[0]["other"] == '{"a":1}'


def test_no_column_hides_another() -> None:
    table = pa.Table.from_arrays([pa.array([i]) for i in range(4)], ["a", "a", "a_1", "a"])
    (row,) = rows_of(table)
    assert sorted(row.values()) == [0, 1, 2, 3]
    assert [column["name"] for column in column_types(table)] == list(row)


def test_every_type_duckdb_gives_becomes_json() -> None:
    table = duckdb.sql("""
        SELECT 1::HUGEINT << 100 AS huge, 2::UBIGINT AS u, 18446744073709551615::UBIGINT AS umax,
               'nan'::DOUBLE AS nan, 1.5::DOUBLE AS d, DATE '2024-02-29' AS day, TIME '10:00' AS t,
               TIMESTAMP '2024-01-01 01:02:03' AS naive, INTERVAL 3 DAY AS i, 'ab'::BLOB AS b,
               {'x': 1.50::DECIMAL(4, 2), 'y': [1, NULL]} AS s, MAP {'k': 1.5::DECIMAL(4, 2)} AS m,
               gen_random_uuid() AS uuid, NULL AS nothing, true AS yes,
               [TIMESTAMPTZ '2024-01-01 00:00:00+00'] AS times, 'e'::ENUM('e', 'f') AS e
    """).to_arrow_table()
    (row,) = orjson.loads(orjson.dumps(rows_of(table)))
    assert row["huge"] == str(1 << 100)
    assert (row["u"], row["umax"], row["nan"], row["d"]) == (2, str(2**64 - 1), None, 1.5)
    assert (row["day"], row["t"], row["naive"]) == (
        "2024-02-29",
        "10:00:00",
        "2024-01-01T01:02:03.000000",
    )
    assert row["s"] == {"x": "1.5", "y": [1, None]}
    assert row["m"] == [["k", "1.5"]]
    assert row["times"] == ["2024-01-01T00:00:00.000000Z"]
    assert (row["yes"], row["nothing"], row["e"], row["b"]) == (True, None, "e", "YWI=")
