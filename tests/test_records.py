"""Columns of the wire and of the lake."""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2.codec.jsontext import map_to_json
from k2.decimals import DECIMAL, to_decimal
from k2.errors import DecodeError, SchemaError
from k2.records import (
    LAKE,
    LAKE_QUOTES,
    LAKE_TRADES,
    WIRE,
    build,
    ids_of,
    quote_flags,
    to_lake,
    to_wire,
    vendor_map,
)
from tests.codec.records import TEXT, recorded_quotes, recorded_trades
from tests.data import SHARED, require

EPOCH = "0b7c9a44-5a0e-4cf0-8f58-2f0d0a3c9f11"
TRADES_LOG = "market.crypto.trades.binance"


def wire(kind: str, records: list[dict[str, Any]]) -> pa.RecordBatch:
    columns = {}
    for field in WIRE[kind]:
        values = [record[field.name] for record in records]
        if pa.types.is_map(field.type):
            values = [None if value is None else list(value.items()) for value in values]
        columns[field.name] = pa.array(values, field.type)
    return build(kind, len(records), columns)


def lake(kind: str, batch: pa.RecordBatch, first: int = 100) -> pa.RecordBatch:
    sequences = np.arange(first, first + batch.num_rows)
    return to_lake(kind, batch, epoch=EPOCH, topic=TRADES_LOG, partition=3, sequences=sequences)


def test_recorded_trades_are_stored_exactly() -> None:
    records = recorded_trades(500)
    stored = lake("trades", wire("trades", records))
    stored.validate(full=True)
    assert stored.schema.equals(LAKE_TRADES)
    rows = stored.to_pylist()
    for place, (row, record) in enumerate(zip(rows, records, strict=True)):
        assert row["price"] == Decimal(record["price"])
        assert row["quantity"] == Decimal(record["quantity"])
        assert row["timestamp"].timestamp() * 1e6 == pytest.approx(record["timestamp"], abs=1)
        assert row["timestamp"].tzinfo is not None
        assert json.loads(row["vendor_data"]) == record["vendor_data"]
        same = ("message_id", "trade_id", "symbol", "side", "currency", "is_backfill")
        assert {name: row[name] for name in same} == {name: record[name] for name in same}
        assert (row["log_epoch"], row["log_topic"], row["log_partition"]) == (EPOCH, TRADES_LOG, 3)
        assert row["platform_sequence"] == 100 + place


def test_recorded_quotes_are_stored_exactly() -> None:
    records = recorded_quotes(500)
    stored = lake("quotes", wire("quotes", records))
    stored.validate(full=True)
    assert stored.schema.equals(LAKE_QUOTES)
    for row, record in zip(stored.to_pylist(), records, strict=True):
        for name in ("bid_price", "bid_quantity", "ask_price", "ask_quantity"):
            assert row[name] == Decimal(record[name])
        assert row["quote_conditions"] == []


@pytest.mark.parametrize(
    ("kind", "recorded", "decimals"),
    [
        ("trades", recorded_trades, ("price", "quantity")),
        ("quotes", recorded_quotes, ("bid_price", "bid_quantity", "ask_price", "ask_quantity")),
    ],
)
def test_rows_of_the_lake_are_the_records_again(kind: str, recorded: Any, decimals: Any) -> None:
    records = wire(kind, recorded(500))
    again = to_wire(kind, pa.Table.from_batches([lake(kind, records)]))
    again.validate(full=True)
    assert again.schema.equals(WIRE[kind])
    for name in WIRE[kind].names:
        found, wanted = again.column(name), records.column(name)
        if name in decimals:
            assert [*map(Decimal, found.to_pylist())] == [*map(Decimal, wanted.to_pylist())]
        else:
            assert found.equals(wanted), name
        texts = [text for name in decimals for text in again.column(name).to_pylist()]
        assert not any("E" in text or text.endswith((".", "0")) for text in texts if "." in text)
    # And so on: a lake made of them is the same lake.
    assert lake(kind, again).equals(lake(kind, records))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("0", "0"),
        ("0.00000001", "0.00000001"),
        ("100", "100"),
        ("123.4500", "123.45"),
        ("-1E2", "-100"),
    ],
)
def test_decimals_are_written_as_exchanges_write_them(value: str, text: str) -> None:
    [record] = recorded_trades(1)
    stored = lake("trades", wire("trades", [record]))
    at = stored.schema.get_field_index("quantity")
    changed = stored.set_column(at, stored.schema.field(at), pa.array([Decimal(value)], DECIMAL))
    again = to_wire("trades", pa.Table.from_batches([changed]))
    assert again.column("quantity").to_pylist() == [text]


def test_a_scalar_of_another_type_names_its_column() -> None:
    columns = {
        name: wire("trades", recorded_trades(1)).column(name) for name in WIRE["trades"].names
    }
    with pytest.raises(SchemaError, match="source_sequence"):
        build("trades", 1, {**columns, "source_sequence": pa.scalar("zz")})


def test_gaps_name_the_ids_and_the_record_that_showed_them() -> None:
    gap = build(
        "gaps",
        1,
        {
            "message_id": "g",
            "symbol": "BTCUSDT",
            "exchange": "BINANCE",
            "data_type": "trades",
            "event": "opened",
            "first_id": 10,
            "last_id": 12,
            "detected_at": 1_723_161_255_342_000,
            "how": "jump",
            "log_offset": 77,
            "ordinal": 0,
        },
    )
    [row] = lake("gaps", gap).to_pylist()
    assert (row["expected"], row["received"], row["size"]) == (10, 13, 3)
    assert row["platform_sequence"] == 77


@pytest.mark.parametrize("kind", list(LAKE))
def test_no_rows_give_an_empty_batch_of_the_right_types(kind: str) -> None:
    empty = pa.RecordBatch.from_arrays(
        [pa.array([], type_) for type_ in WIRE[kind].types], schema=WIRE[kind]
    )
    stored = lake(kind, empty)
    stored.validate(full=True)
    assert stored.num_rows == 0
    assert stored.schema.equals(LAKE[kind])


@pytest.mark.parametrize(
    ("bid", "ask", "condition"),
    [
        ("1", "2", []),
        ("2", "1.9999999999", ["CROSSED"]),
        ("1.0", "1.00", ["LOCKED"]),
        ("1", "0.0", ["ONE_SIDED"]),
        ("0", "1", ["ONE_SIDED"]),
        ("0", "0", ["ONE_SIDED"]),
    ],
)
def test_quote_conditions(bid: str, ask: str, condition: list[str]) -> None:
    [record] = recorded_quotes(1)
    plain = {**record, "bid_price": "1", "ask_price": "2"}
    batch = wire("quotes", [plain, {**record, "bid_price": bid, "ask_price": ask}, plain])
    assert lake("quotes", batch).column("quote_conditions").to_pylist() == [[], condition, []]


def test_the_asx_tape_has_the_crossed_and_locked_books_it_is_known_for() -> None:
    path = SHARED / "asx" / "quotes" / "7078.csv.gz"
    require(path)
    with gzip.open(path, "rt") as lines:
        rows = [line.split(",") for line in lines]
    bid = to_decimal(pa.array([row[2] for row in rows]), "bid")
    ask = to_decimal(pa.array([row[3] for row in rows]), "ask")
    flags = quote_flags(bid, ask)
    one_sided = sum(Decimal(row[2]) == 0 or Decimal(row[3]) == 0 for row in rows)
    crossed = sum(Decimal(row[2]) > Decimal(row[3]) > 0 for row in rows)
    locked = sum(Decimal(row[2]) == Decimal(row[3]) != 0 for row in rows)
    assert [int((flags == flag).sum()) for flag in (1, 2, 3)] == [crossed, locked, one_sided]
    assert (crossed, locked) == (323, 1_610)


@given(st.lists(st.none() | st.dictionaries(TEXT, TEXT, max_size=6), max_size=8), st.integers(0, 8))
@settings(max_examples=300, deadline=None)
def test_maps_become_the_json_the_standard_library_writes(
    rows: list[dict[str, str] | None], cut: int
) -> None:
    type_ = WIRE["trades"].field("vendor_data").type
    maps = pa.array([None if row is None else list(row.items()) for row in rows], type_)
    texts = [
        None if row is None else json.dumps(row, separators=(",", ":"), ensure_ascii=False)
        for row in rows
    ]
    made = map_to_json(maps)
    made.validate(full=True)
    assert made.to_pylist() == texts
    assert map_to_json(maps.slice(cut)).to_pylist() == texts[cut:]


@given(st.lists(st.lists(TEXT, min_size=3, max_size=3), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_maps_of_one_shape_become_the_same_json(rows: list[list[str]]) -> None:
    columns = [pa.array(column) for column in zip(*rows, strict=True)]
    maps = vendor_map(len(rows), {"a": columns[0], 'b"': "x", "c": columns[1], "": columns[2]})
    expected = [
        json.dumps(
            {"a": row[0], 'b"': "x", "c": row[1], "": row[2]},
            separators=(",", ":"),
            ensure_ascii=False,
        )
        for row in rows
    ]
    assert map_to_json(maps).to_pylist() == expected


@given(
    st.lists(
        st.decimals(
            min_value=Decimal(-(10**17)),
            max_value=Decimal(10**17),
            places=10,
            allow_nan=False,
            allow_infinity=False,
        ),
        max_size=20,
    )
)
@settings(deadline=None)
def test_decimal_text_is_stored_exactly(values: list[Decimal]) -> None:
    texts = pa.array([f"{value:f}" for value in values], pa.string())
    assert to_decimal(texts, "price").to_pylist() == values


digits = st.text("0123456789", max_size=140)
exponents = st.one_of(
    st.just(""), st.builds("{}{}".format, st.sampled_from("eE"), st.integers(-70, 70))
)


@given(
    st.lists(
        st.builds("{}{}.{}{}".format, st.sampled_from(["", "-"]), digits, digits, exponents),
        max_size=4,
    )
)
@settings(deadline=None, max_examples=400)
def test_text_is_stored_exactly_or_not_at_all(texts: list[str]) -> None:
    batch = pa.array(["1.5", *texts, "2"])[1:-1]
    try:
        stored = to_decimal(batch, "price").to_pylist()
    except DecodeError:
        return
    assert stored == [Decimal(text) for text in texts]


@pytest.mark.parametrize(
    "text",
    [
        "9" * 129,
        "1" + "0" * 140,
        "8e-49",
        "5894888114.3880979021848460302e-59",
        "6.8005620557314064089678500073224008767060770067019",
    ],
)
def test_text_that_arrow_would_misread_is_refused(text: str) -> None:
    assert pa.array([text]).cast(DECIMAL)[0].as_py() != Decimal(text), "mended: drop the check"
    with pytest.raises(DecodeError, match="'price'"):
        to_decimal(pa.array(["1", text, "2"]), "price")
    assert to_decimal(pa.array(["1", text, "2"]).slice(2), "price").to_pylist() == [2]


def test_long_text_that_is_exact_is_stored() -> None:
    texts = ["0" * 60 + "1.5", "1." + "0" * 25, "1E-8", "12e3"]
    assert to_decimal(pa.array(texts), "price").to_pylist() == [Decimal(text) for text in texts]


def test_text_that_is_no_decimal_names_the_column() -> None:
    with pytest.raises(DecodeError, match="'price'"):
        to_decimal(pa.array(["1", "0.12345678901"]), "price")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("3735683259", 3_735_683_259),
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775808", None),
        ("99999999999999999999", None),
        ("007", None),
        ("-5", None),
        ("+5", None),
        ("0x10", None),
        ("1e3", None),
        (" 1", None),
        ("1.0", None),
        ("", None),
        ("٣", None),
        ("d41d8cd98f00b204-17", None),
    ],
)
@pytest.mark.parametrize("company", [[], ["5"], ["123", "x"], ["77777"] * 3])
def test_ids_have_one_spelling(text: str, number: int | None, company: list[str]) -> None:
    texts = [*company, text]
    batch = pa.RecordBatch.from_arrays([pa.array(texts)], names=["trade_id"])
    ids, valid = ids_of("trades", batch)
    assert ids.dtype == np.int64
    assert (bool(valid[-1]), int(ids[-1])) == (number is not None, number or 0)
    assert valid[:-1].tolist() == [name != "x" for name in company]


@given(st.lists(st.integers(0, 2**63 - 1), max_size=20))
@settings(deadline=None)
def test_all_ids_of_int64_are_read(ids: list[int]) -> None:
    batch = pa.RecordBatch.from_arrays([pa.array(map(str, ids), pa.string())], names=["quote_id"])
    read, valid = ids_of("quotes", batch)
    assert read.tolist() == ids
    assert valid.all()


def test_build_broadcasts_and_fills_in() -> None:
    columns = {name: "x" for name in WIRE["trades"].names if "timestamp" not in name}
    columns |= {"timestamp": np.array([1, 2]), "receive_timestamp": 5, "ingestion_timestamp": 5}
    for name in ("source_sequence", "vendor_data", "is_backfill", "trade_conditions"):
        del columns[name]
    batch = build("trades", 2, columns)
    assert batch.schema.equals(WIRE["trades"])
    assert batch.column("source_sequence").null_count == 2
    assert batch.column("trade_conditions").to_pylist() == [[], []]
    assert batch.column("is_backfill").to_pylist() == [False, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"volume": "1"}, "no column 'volume'"),
        ({"price": ["1"]}, "'price' has 1 values"),
        ({"price": ["1", None]}, "1 of them null"),
        ({"timestamp": "noon"}, "'timestamp' is not timestamp"),
        ({"price": pa.array([[1], [2]])}, "'price' is not string"),
    ],
)
def test_build_names_the_column_that_does_not_fit(change: dict[str, Any], message: str) -> None:
    record = recorded_trades(1)[0]
    record["vendor_data"] = None
    record["trade_conditions"] = pa.scalar([], pa.list_(pa.string()))
    with pytest.raises(SchemaError, match=message):
        build("trades", 2, {**record, **change})


def test_decimals_have_28_digits_and_10_places() -> None:
    assert (DECIMAL.precision, DECIMAL.scale) == (28, 10)
