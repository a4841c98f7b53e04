"""Compatibility rules against fastavro: what is called compatible is readable."""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from k2.codec.compat import incompatibilities
from k2.codec.schemas import compact, schema_text

Field = dict[str, Any]


def record(*fields: Field, name: str = "R", **extra: Any) -> Field:
    return {"type": "record", "name": name, "fields": list(fields), **extra}


def field(type_: Any, name: str = "a", **extra: Any) -> Field:
    return {"name": name, "type": type_, **extra}


def enum(*symbols: str, name: str = "E", **extra: Any) -> Field:
    return {"type": "enum", "name": name, "symbols": list(symbols), **extra}


def micros() -> Field:
    return {"type": "long", "logicalType": "timestamp-micros"}


def decimal(scale: int) -> Field:
    return {"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": scale}


def read(reader: Any, writer: Any, value: Any) -> Any:
    """`value` written with one schema and read with the other, by fastavro."""
    body = io.BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(writer), value)
    body.seek(0)
    return fastavro.schemaless_reader(
        body, fastavro.parse_schema(writer), fastavro.parse_schema(reader)
    )


def why(reader: Any, writer: Any) -> list[str]:
    return incompatibilities(compact(reader), compact(writer))


COMPATIBLE = [
    ("a field added with a default", record(field("int"), field("int", "b", default=1)),
     record(field("int")), {"a": 1}, {"a": 1, "b": 1}),
    ("a field dropped", record(field("int")), record(field("int"), field("int", "b")),
     {"a": 1, "b": 2}, {"a": 1}),
    ("a field renamed by alias", record(field("int", "b", aliases=["a"])), record(field("int")),
     {"a": 1}, {"b": 1}),
    ("fields in another order", record(field("int", "b"), field("int")),
     record(field("int"), field("int", "b")), {"a": 1, "b": 2}, {"a": 1, "b": 2}),
    ("an int widened", record(field("long")), record(field("int")), {"a": 1}, {"a": 1}),
    ("a long as double", record(field("double")), record(field("long")), {"a": 1}, {"a": 1.0}),
    ("text as bytes", record(field("bytes")), record(field("string")), {"a": "é"},
     {"a": "é".encode()}),
    ("made nullable", record(field(["null", "string"])), record(field("string")), {"a": "x"},
     {"a": "x"}),
    ("an enum symbol added", record(field(enum("A", "B"))), record(field(enum("A"))), {"a": "A"},
     {"a": "A"}),
    ("an enum symbol lost to a default", record(field(enum("A", default="A"))),
     record(field(enum("A", "B"))), {"a": "B"}, {"a": "A"}),
    ("a wider map", record(field({"type": "map", "values": "long"})),
     record(field({"type": "map", "values": "int"})), {"a": {"x": 1}}, {"a": {"x": 1}}),
    ("a nested field added",
     record(field(record(field("int", "x"), field("int", "y", default=7), name="I"))),
     record(field(record(field("int", "x"), name="I"))), {"a": {"x": 1}},
     {"a": {"x": 1, "y": 7}}),
]  # fmt: skip

INCOMPATIBLE = [
    ("a field added without a default", record(field("int"), field("int", "b")),
     record(field("int")), {"a": 1}, "b: a new field needs a default"),
    ("text became a number", record(field("long")), record(field("string")), {"a": "x"},
     "a: string cannot be read as long"),
    ("a long narrowed", record(field("int")), record(field("long")), {"a": 2**40},
     "a: long cannot be read as int"),
    ("no longer nullable", record(field("string")), record(field(["null", "string"])), {"a": None},
     "null cannot be read as string"),
    ("an enum symbol lost", record(field(enum("A"))), record(field(enum("A", "B"))), {"a": "B"},
     "lost the symbols B"),
    ("another enum", record(field(enum("A", name="X"))), record(field(enum("A", name="Y"))),
     {"a": "A"}, "'Y' became 'X'"),
    ("a fixed of another size", record(field({"type": "fixed", "name": "F", "size": 3})),
     record(field({"type": "fixed", "name": "F", "size": 2})), {"a": b"xy"}, "fixed of 2 bytes"),
    ("items of another type", record(field({"type": "array", "items": "int"})),
     record(field({"type": "array", "items": "string"})), {"a": ["x"]}, "a[]: string cannot"),
    ("a branch no union branch takes", record(field(["null", "int"])),
     record(field(["null", "string"])), {"a": "x"}, "none of the union's null, int"),
]  # fmt: skip

#: What resolution lets pass although the values then mean something else, or that Avro forbids.
REFUSED = [
    (record(field("long")), record(field(micros())), "logical type timestamp-micros became none"),
    (record(field({"type": "long", "logicalType": "timestamp-millis"})), record(field(micros())),
     "became timestamp-millis"),
    (record(field("string")), record(field("bytes")), "bytes cannot be read as string"),
    (record(field(decimal(6))), record(field(decimal(8))), "decimal scale 8 became 6"),
    (record(field("int"), field("int", "b", default="one")), record(field("int")),
     "the default 'one' is not of its type"),
    (record(field(["null", "int"], default=3)), record(field("int")), "the default 3"),
    (record(field("int"), name="S"), record(field("int")), "record 'R' became 'S'"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "reader", "writer", "value", "got"), COMPATIBLE,
                         ids=[case[0] for case in COMPATIBLE])  # fmt: skip
def test_compatible_changes(what: str, reader: Any, writer: Any, value: Any, got: Any) -> None:
    assert why(reader, writer) == []
    assert read(reader, writer, value) == got


@pytest.mark.parametrize(("what", "reader", "writer", "value", "reason"), INCOMPATIBLE,
                         ids=[case[0] for case in INCOMPATIBLE])  # fmt: skip
def test_incompatible_changes_fail_in_the_reference_too(
    what: str, reader: Any, writer: Any, value: Any, reason: str
) -> None:
    assert reason in " ".join(why(reader, writer))
    with pytest.raises(Exception):  # noqa: B017, PT011 - fastavro has many
        read(reader, writer, value)


@pytest.mark.parametrize(("reader", "writer", "reason"), REFUSED)
def test_changes_of_meaning_are_refused(reader: Any, writer: Any, reason: str) -> None:
    assert reason in " ".join(why(reader, writer))


def test_recursive_and_named_types_end() -> None:
    tree = record(
        field("string", "label"),
        field({"type": "array", "items": "com.x.Node"}, "children"),
        field(["null", "Node"], "next", default=None),
        name="Node",
        namespace="com.x",
    )
    wider = json.loads(json.dumps(tree))
    wider["fields"].append(field("int", "weight", default=0))
    assert why(wider, tree) == []
    narrower = json.loads(json.dumps(tree))
    narrower["fields"][0]["type"] = "int"
    assert "label: string cannot be read as int" in why(narrower, tree)


def test_an_undefined_name_is_an_error() -> None:
    with pytest.raises(ValueError, match="'Ghost' is not defined"):
        why(record(field("Ghost")), record(field("int")))


@pytest.mark.parametrize("kind", ["trades", "quotes", "gaps", "dlq"])
def test_our_schemas_read_themselves(kind: str) -> None:
    assert incompatibilities(schema_text(kind), schema_text(kind)) == []


PRIMITIVES = {
    "null": st.none(),
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(width=32, allow_nan=False),
    "double": st.floats(allow_nan=False),
    "bytes": st.binary(max_size=4),
    "string": st.text(max_size=4),
}
DEFAULTS = {"null": None, "boolean": True, "int": 1, "long": 1, "float": 1.5, "double": 1.5,
            "bytes": "b", "string": "s"}  # fmt: skip


SYMBOLS = st.lists(st.sampled_from("ABCD"), min_size=1, unique=True)
#: Without bytes: fastavro reads bytes of a union that also has string as string, and stumbles.
UNIONS = st.lists(st.sampled_from(sorted(set(PRIMITIVES) - {"bytes"})), min_size=1, unique=True)
LEAVES = st.one_of(
    st.sampled_from(sorted(PRIMITIVES)),
    st.sampled_from(sorted(PRIMITIVES)),
    st.builds(lambda symbols, n: enum(*symbols, name=f"E{n}"), SYMBOLS, st.integers(0, 1)),
    st.builds(
        lambda symbols, n: enum(*symbols, name=f"E{n}", default=symbols[0]),
        SYMBOLS,
        st.integers(0, 1),
    ),
    st.builds(
        lambda size, n: {"type": "fixed", "name": f"F{n}", "size": size},
        st.integers(1, 2),
        st.integers(0, 1),
    ),
)


def types(depth: int) -> st.SearchStrategy[Any]:
    """Avro types; few names, so that two draws often mean the same named type."""
    if not depth:
        return LEAVES
    inner = types(depth - 1)
    return st.one_of(
        LEAVES,
        LEAVES,
        inner.map(lambda items: {"type": "array", "items": items}),
        inner.map(lambda items: {"type": "map", "values": items}),
        UNIONS,
        st.integers(0, 1).flatmap(lambda n: records(depth - 1, f"N{n}")),
    )


@st.composite
def records(draw: st.DrawFn, depth: int, name: str) -> Any:
    fields = []
    for entry in draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True)):
        type_ = draw(types(depth))
        made = field(type_, entry)
        if isinstance(type_, str) and draw(st.booleans()):
            made["default"] = DEFAULTS[type_]
        fields.append(made)
    return record(*fields, name=name)


@st.composite
def mutated(draw: st.DrawFn, schema: Any) -> Any:
    """The schema, or one a step of evolution away."""
    schema = json.loads(json.dumps(schema))
    fields = schema["fields"]
    for entry in list(fields):
        match draw(st.sampled_from(["keep"] * 3 + ["drop", "wider", "nullable", "anew", "rename"])):
            case "drop" if len(fields) > 1:
                fields.remove(entry)
            case "wider" if isinstance(entry["type"], str):
                entry["type"] = draw(st.sampled_from(sorted(PRIMITIVES)))
                entry.pop("default", None)
            case "nullable" if entry["type"] != "null" and not isinstance(entry["type"], list):
                entry["type"] = ["null", entry["type"]]
                entry.pop("default", None)
            case "anew":
                entry["type"] = draw(types(1))
                entry.pop("default", None)
            case "rename":
                entry["aliases"] = [entry["name"]]
                entry["name"] = entry["name"] * 2
    if draw(st.booleans()):
        fields.append(field("int", "z", default=4))
    return schema


def values(avro: Any) -> st.SearchStrategy[Any]:
    if isinstance(avro, list):
        return st.one_of([values(branch) for branch in avro])
    if isinstance(avro, str):
        return PRIMITIVES[avro]
    build = {
        "enum": lambda: st.sampled_from(avro["symbols"]),
        "fixed": lambda: st.binary(min_size=avro["size"], max_size=avro["size"]),
        "array": lambda: st.lists(values(avro["items"]), max_size=2),
        "map": lambda: st.dictionaries(st.text(max_size=2), values(avro["values"]), max_size=2),
        "record": lambda: st.fixed_dictionaries(
            {entry["name"]: values(entry["type"]) for entry in avro["fields"]}
        ),
    }
    return build[avro["type"]]()


def usable(schema: Any) -> bool:
    """False when a name is defined twice, which Avro forbids."""
    try:
        fastavro.parse_schema(json.loads(json.dumps(schema)))
    except fastavro.schema.SchemaParseException:
        return False
    return True


@given(data=st.data())
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
def test_what_is_compatible_the_reference_reads(data: st.DataObject) -> None:
    writer = data.draw(records(2, "R").filter(usable))
    reader = data.draw(mutated(writer).filter(usable))
    assert why(writer, writer) == []
    compatible = why(reader, writer) == []
    event(f"compatible: {compatible}, changed: {reader != writer}")
    if compatible:
        for value in data.draw(st.lists(values(writer), max_size=3)):
            read(json.loads(json.dumps(reader)), json.loads(json.dumps(writer)), value)
