"""JSON made in Arrow says what JSON made value by value says."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import duckdb
import orjson
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from k2.query.encode import rows_of
from k2.query.json_text import json_rows, json_texts

_JSON = frozenset({"vendor_data"})
_TIMES = st.datetimes(dt.datetime(1, 1, 1), timezones=st.just(dt.UTC))  # noqa: DTZ001
_FLAT = st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3)
_COLUMNS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "text": (pa.string(), st.text(max_size=5)),
    "plain": (pa.string(), st.sampled_from(["BTCUSDT", "BUY", ""])),
    "price": (pa.decimal128(28, 10), st.decimals(0, 10**15, places=10)),
    "signed": (pa.decimal128(38, 2), st.decimals(-(10**9), 10**9, places=2)),
    "whole": (pa.decimal128(20, 0), st.decimals(-(10**9), 10**9, places=0)),
    "time": (pa.timestamp("us", "UTC"), _TIMES),
    "nanos": (pa.timestamp("ns", "UTC"), st.just(dt.datetime(2024, 1, 1, tzinfo=dt.UTC))),
    "number": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "huge": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "small": (pa.int32(), st.integers(-5, 5)),
    "flag": (pa.bool_(), st.booleans()),
    "real": (pa.float64(), st.floats()),
    "names": (pa.list_(pa.string()), st.lists(st.text(max_size=2), max_size=2)),
    "none": (pa.list_(pa.string()), st.just([])),
    "day": (pa.date32(), st.dates()),
    "vendor_data": (
        pa.string(),
        st.one_of(
            _FLAT.map(lambda value: orjson.dumps(value).decode()),
            st.sampled_from(["", "{", '{"a":1}', "null", '{"a":"b",}', '["x"]']),
        ),
    ),
}


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    count = draw(st.integers(0, 4))
    names = draw(st.lists(st.sampled_from(sorted(_COLUMNS)), min_size=1, max_size=8))
    columns = []
    for name in names:
        kind, values = _COLUMNS[name]
        cell = draw(st.sampled_from([values, st.none() | values]))
        array = pa.array(draw(st.lists(cell, min_size=count + 1, max_size=count + 1)), kind)
        # A slice and two chunks: offsets that do not begin at nought.
        parts = [array.slice(1, count // 2), array.slice(1 + count // 2)]
        columns.append(pa.chunked_array(parts, kind))
    return pa.Table.from_arrays(columns, names)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(tables())
def test_it_says_the_same_as_one_by_one(table: pa.Table) -> None:
    expected = orjson.dumps(rows_of(table, parse_json=_JSON))
    assert orjson.loads(json_rows(table, parse_json=_JSON)) == orjson.loads(expected)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(tables(), st.sampled_from([1, 50]))
def test_one_by_one_or_together_each_row_has_its_text(table: pa.Table, times: int) -> None:
    many = pa.concat_tables([table] * times)
    texts = json_texts(many, parse_json=_JSON)
    together = orjson.loads(json_rows(many, parse_json=_JSON))
    assert [orjson.loads(text) for text in texts] == together


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("61837.6300000000", "61837.63"),
        ("100.0000000000", "100"),
        ("0.0000000000", "0"),
        ("0.0000000001", "0.0000000001"),
        ("-12.5000000000", "-12.5"),
    ],
)
def test_decimals_are_plain_text(value: str, text: str) -> None:
    table = pa.table({"x": pa.array([Decimal(value)], pa.decimal128(28, 10))})
    assert json_rows(table) == b'[{"x":"' + text.encode() + b'"}]'


def test_nothing_is_an_empty_list() -> None:
    assert json_rows(pa.table({"x": pa.array([], pa.int64())})) == b"[]"


def test_every_type_duckdb_gives() -> None:
    table = duckdb.sql("""
        SELECT 1::HUGEINT << 100 AS huge, 18446744073709551615::UBIGINT AS u, 'nan'::DOUBLE AS nan,
               DATE 'infinity' AS day, TIME '10:00' AS t, TIMESTAMP '2024-01-01 01:02:03' AS naive,
               TIMESTAMPTZ 'infinity' AS endless, INTERVAL 3 DAY AS i, 'ab'::BLOB AS b,
               {'x': 1.50::DECIMAL(4, 2)} AS s, MAP {'k': 1.5::DECIMAL(4, 2)} AS m, NULL AS nothing,
               gen_random_uuid() AS uuid, true AS yes, 'e'::ENUM('e', 'f') AS e, 1 AS a, 2 AS a
    """).to_arrow_table()
    assert orjson.loads(json_rows(table)) == orjson.loads(orjson.dumps(rows_of(table)))
