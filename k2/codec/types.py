"""Avro types as Arrow types, for every schema K2 can read.

The mapping is pyruhvro's where pyruhvro can read the type, so that both codecs give one result:
enums are strings, timestamps have no zone (they are UTC), list items are nullable, map values are
not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import pyarrow as pa

from k2.errors import SchemaError

_PRIMITIVES: Final = {
    "null": pa.null(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bytes": pa.binary(),
    "string": pa.string(),
}
_LOGICAL: Final = {
    ("long", "timestamp-micros"): pa.timestamp("us"),
    ("long", "timestamp-millis"): pa.timestamp("ms"),
    ("int", "date"): pa.date32(),
}
#: What pyruhvro reads and writes exactly (it panics on bytes, fixed and decimals).
_FAST: Final = frozenset({"boolean", "int", "long", "float", "double", "string"})


def arrow_schema(schema_text: str) -> pa.Schema:
    """Arrow schema of the records of an Avro record schema. Raises `SchemaError`."""
    schema = json.loads(schema_text)
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise SchemaError(f"a schema of values must be an Avro record, not {schema_text[:60]!r}")
    return pa.schema([_field(field) for field in schema["fields"]])


def null_branch(avro: Any) -> tuple[int, Any] | None:
    """For a union of null and one other type: (index of null, the other type)."""
    if isinstance(avro, list) and len(avro) == 2 and "null" in avro:
        index = avro.index("null")
        return index, avro[1 - index]
    return None


def logical_of(avro: Any) -> str | None:
    """The logical type K2 heeds, if any."""
    return avro.get("logicalType") if isinstance(avro, dict) else None


def name_of(avro: Any) -> str:
    """The type's own name: `string`, `record`, `union`, …"""
    if isinstance(avro, list):
        return "union"
    if isinstance(avro, dict):
        inner = avro["type"]
        return name_of(inner) if isinstance(inner, (dict, list)) else str(inner)
    return str(avro)


def is_fast(avro: Any) -> bool:
    """True when pyruhvro reads and writes the type as fastavro does."""
    nullable = null_branch(avro)
    if nullable is not None:
        return name_of(nullable[1]) != "union" and is_fast(nullable[1])
    name = name_of(avro)
    if name == "record":
        return all(is_fast(field["type"]) for field in avro["fields"])
    if name == "array":
        return is_fast(avro["items"])
    if name == "map":
        # A null map value cannot be expressed in the Arrow type pyruhvro builds.
        return name_of(avro["values"]) != "union" and is_fast(avro["values"])
    if name == "enum":
        # Above 64 symbols an index takes two bytes; sizes.py counts on one.
        return len(avro["symbols"]) <= 64
    logical = logical_of(avro)
    return name in _FAST and (logical is None or (name, logical) in _LOGICAL)


def _field(field: dict[str, Any]) -> pa.Field:
    nullable = null_branch(field["type"]) is not None or field["type"] == "null"
    return pa.field(field["name"], arrow_type(field["type"]), nullable=nullable)


def arrow_type(avro: Any) -> pa.DataType:
    """Arrow type of an Avro type. Raises `SchemaError` for one K2 does not read."""
    nullable = null_branch(avro)
    if nullable is not None:
        return arrow_type(nullable[1])
    name = name_of(avro)
    build = _BUILD.get(name)
    if build is not None:
        return build(avro)
    if name not in _PRIMITIVES:
        raise SchemaError(
            f"Avro type {str(avro)[:80]!r} is not one K2 reads; allowed: primitives, enum, fixed, "
            "array, map, record, and a union of null with one of them"
        )
    logical = logical_of(avro)
    if logical == "decimal":
        return pa.decimal128(avro["precision"], avro.get("scale", 0))
    return _LOGICAL.get((name, logical or ""), _PRIMITIVES[name])


def _fixed(avro: Any) -> pa.DataType:
    if logical_of(avro) == "decimal":
        return pa.decimal128(avro["precision"], avro.get("scale", 0))
    return pa.binary(avro["size"])


_BUILD: Final[dict[str, Callable[[Any], pa.DataType]]] = {
    "record": lambda avro: pa.struct([_field(field) for field in avro["fields"]]),
    "enum": lambda _avro: pa.string(),
    "fixed": _fixed,
    "array": lambda avro: pa.list_(pa.field("item", arrow_type(avro["items"]))),
    "map": lambda avro: pa.map_(
        pa.string(),
        pa.field("value", arrow_type(avro["values"]), null_branch(avro["values"]) is not None),
    ),
}
