"""Arrow types of Avro schemas, and the size every row takes."""

from __future__ import annotations

import json

import pyarrow as pa
import pyruhvro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2.codec.engines import FastEngine
from k2.codec.schemas import SCHEMA_FILES, compact, kind_of, schema_dir, schema_text, subject_of
from k2.codec.sizes import row_sizes
from k2.codec.types import arrow_schema, is_fast
from k2.errors import SchemaError
from k2.records import WIRE
from tests.codec.records import RECORDS, reference_encode

NESTED = compact(
    {
        "type": "record",
        "name": "Nested",
        "fields": [
            {"name": "flag", "type": "boolean"},
            {"name": "day", "type": {"type": "int", "logicalType": "date"}},
            {"name": "ms", "type": {"type": "long", "logicalType": "timestamp-millis"}},
            {"name": "real", "type": ["null", "double"]},
            {"name": "single", "type": "float"},
            {"name": "lists", "type": {"type": "array", "items": ["null", "string"]}},
            {"name": "maps", "type": {"type": "map", "values": "long"}},
            {
                "name": "inner",
                "type": {
                    "type": "record",
                    "name": "Inner",
                    "fields": [{"name": "x", "type": "int"}, {"name": "s", "type": "string"}],
                },
            },
        ],
    }
)


def avsc(type_: object) -> str:
    return compact({"type": "record", "name": "R", "fields": [{"name": "a", "type": type_}]})


@pytest.mark.parametrize("kind", ["trades", "quotes", "agg_trades", "reference_data", "gaps"])
def test_types_are_the_fast_decoders(kind: str) -> None:
    text = schema_text(kind)
    assert FastEngine.reads(text)
    assert arrow_schema(text).equals(pyruhvro.avro_to_arrow_schema(text))
    assert arrow_schema(text).equals(WIRE[kind])


def test_types_of_nested_schemas_are_the_fast_decoders() -> None:
    assert FastEngine.reads(NESTED)
    assert arrow_schema(NESTED).equals(pyruhvro.avro_to_arrow_schema(NESTED))


def test_dead_letters_carry_bytes_and_use_the_reference() -> None:
    assert arrow_schema(schema_text("dlq")).equals(WIRE["dlq"])
    assert not FastEngine.reads(schema_text("dlq"))


@pytest.mark.parametrize(
    ("avro", "arrow"),
    [
        ({"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 6},
         pa.decimal128(18, 6)),
        ({"type": "fixed", "name": "F", "size": 4}, pa.binary(4)),
        (["string", "null"], pa.string()),
        ("bytes", pa.binary()),
    ],
)  # fmt: skip
def test_types_only_the_reference_reads(avro: object, arrow: pa.DataType) -> None:
    assert arrow_schema(avsc(avro)).field("a").type == arrow
    assert is_fast(avro) == (avro == ["string", "null"])


@pytest.mark.parametrize("avro", [["null", "int", "string"], "Elsewhere"])
def test_types_k2_does_not_read_are_named(avro: object) -> None:
    assert not is_fast(avro)
    with pytest.raises(SchemaError, match="not one K2 reads"):
        arrow_schema(avsc(avro))


def test_a_schema_that_is_no_record_is_refused() -> None:
    with pytest.raises(SchemaError, match="must be an Avro record"):
        arrow_schema('"string"')


@pytest.mark.parametrize("kind", ["trades", "quotes", "agg_trades", "reference_data", "gaps"])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_sizes_are_the_reference_encoders(kind: str, data: st.DataObject) -> None:
    records = data.draw(st.lists(RECORDS[kind], min_size=1, max_size=6))
    values = [reference_encode(kind, record, 1) for record in records]
    batch = FastEngine(schema_text(kind), 1).read(values)
    fields = json.loads(schema_text(kind))["fields"]
    sizes = [len(value) - 5 for value in values]
    assert row_sizes(fields, batch).tolist() == sizes
    assert row_sizes(fields, batch.slice(1)).tolist() == sizes[1:]


@pytest.mark.parametrize("kind", list(SCHEMA_FILES))
def test_every_field_says_what_it_is(kind: str) -> None:
    schema = json.loads(schema_text(kind))
    assert schema["namespace"] == "com.k2.marketdata"
    assert [field["name"] for field in schema["fields"] if not field.get("doc")] == []
    timestamps = [field for field in schema["fields"] if "logicalType" in str(field["type"])]
    assert all("microseconds UTC" in field["doc"] for field in timestamps)


@pytest.mark.parametrize(
    ("topic", "kind", "subject"),
    [
        ("market.crypto.trades.binance", "trades", "market.crypto.trades-value"),
        ("market.crypto.trades.binance.validated", "trades", "market.crypto.trades-value"),
        ("market.crypto.quotes.kraken.deferred", "quotes", "market.crypto.quotes-value"),
        ("market.crypto.trades.binance.gaps", "gaps", "market.gaps-value"),
        ("market.equities.quotes.asx.dlq", "dlq", "market.dead_letters-value"),
    ],
)
def test_topics_have_a_kind_and_a_subject(topic: str, kind: str, subject: str) -> None:
    assert (kind_of(topic), subject_of(topic)) == (kind, subject)


def test_a_kind_without_schema_is_named() -> None:
    with pytest.raises(SchemaError, match="'candles'"):
        schema_text("candles")


def test_a_missing_directory_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert schema_dir().is_dir()
    monkeypatch.setattr("k2.__file__", "/nowhere/k2/__init__.py")
    with pytest.raises(SchemaError, match="pip install -e"):
        schema_text("trades")
