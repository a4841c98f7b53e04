"""Columns are told by their Parquet field ids, which outlive any renaming."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

FIELD_ID: Final = b"PARQUET:field_id"


def field_id(column: pa.Field) -> int:
    """The Parquet field id of a column; -1 for a file without ids."""
    return int((column.metadata or {}).get(FIELD_ID, b"-1"))


def conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """`rows` with the columns of `schema`, found by field id; absent ones are null."""
    if rows.schema.equals(schema, check_metadata=True):
        return rows
    by_id = {field_id(column): index for index, column in enumerate(rows.schema)}
    columns = []
    for column in schema:
        index = by_id.get(field_id(column))
        if index is None:
            columns.append(pa.nulls(rows.num_rows, column.type))
        else:
            found = rows.column(index)
            columns.append(found if found.type == column.type else found.cast(column.type))
    return pa.Table.from_arrays(columns, schema=schema)
