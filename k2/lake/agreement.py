"""Whether Avro subject, Arrow columns and Iceberg table of a kind of record agree."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import pyarrow as pa
from pyiceberg.table.metadata import TableMetadata

from k2.codec.compat import incompatibilities
from k2.codec.evolution import TYPES, added_fields
from k2.codec.types import arrow_type, null_branch
from k2.errors import LakeError
from k2.lake.added import added_columns, is_dropped, kind_of
from k2.lake.tables import TableDef, verify
from k2.records import LAKE, WIRE


def disagreements(
    kind: str, table: TableDef, metadata: TableMetadata, own: str, latest: Iterable[tuple[str, str]]
) -> list[str]:
    """What does not fit together; empty when all does.

    `own`: the schema K2 writes; `latest`: (subject, newest schema of the registry).
    """
    found = list(_avro_and_arrow(kind, own))
    found += _arrow_and_lake(kind, table)
    try:
        verify(table, metadata)
    except LakeError as exc:
        found.append(exc.message)
    for subject, newest in latest:
        found += [f"{subject}: {text}" for text in _subject_and_table(own, newest, table, metadata)]
    return found


def _avro_and_arrow(kind: str, own: str) -> Iterator[str]:
    fields = {one["name"]: one["type"] for one in json.loads(own)["fields"]}
    for column in WIRE[kind]:
        if column.name not in fields:
            yield f"Avro: field {column.name!r} is missing; Arrow has it as {column.type}"
        elif not _alike(arrow_type(fields[column.name]), column.type):
            yield f"Avro: {column.name!r} is {fields[column.name]}; Arrow has {column.type}"
    for name in fields.keys() - set(WIRE[kind].names):
        yield f"Arrow: column {name!r} is missing; Avro has the field"


def _alike(one: pa.DataType, other: pa.DataType) -> bool:
    """Equal but for the names of lists' elements."""
    if pa.types.is_list(one) and pa.types.is_list(other):
        return _alike(one.value_type, other.value_type)
    return bool(one == other)


def _arrow_and_lake(kind: str, table: TableDef) -> Iterator[str]:
    ours = {column.name: column.type for column in table.arrow_schema}
    made = {column.name: column.type for column in LAKE[kind]}
    for name in ours.keys() | made.keys():
        left, right = made.get(name), ours.get(name)
        if left is None or right is None or not _alike(left, right):
            yield f"Arrow: {name!r} is {left or '(missing)'}; the table's is {right or '(missing)'}"


def _subject_and_table(
    own: str, newest: str, table: TableDef, metadata: TableMetadata
) -> Iterator[str]:
    for reason in incompatibilities(own, newest):
        yield f"running workers cannot read its newest records: {reason}"
    added = added_fields(newest, own)
    if added is None:
        yield "its newest schema lacks a field of K2's, or has it as another type"
        return
    columns = {
        one.name: one for one in added_columns(table, metadata.schema()) if not is_dropped(one)
    }
    for field in added:
        column = columns.pop(field["name"], None)
        if column is None:
            yield f"field {field['name']!r} has no column in {table}, so it is not stored"
        elif TYPES.get(kind_of(column) or "") != _type_of(field):
            yield f"field {field['name']!r} is {field['type']}, the column {column.field_type}"
    for name in columns:
        yield f"column {name!r} of {table} has no field, so it stays empty"


def _type_of(field: dict[str, object]) -> object:
    nullable = null_branch(field["type"])
    return field["type"] if nullable is None else nullable[1]
