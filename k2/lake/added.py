"""Columns a table has beyond K2's own: `k2 schema evolve`, or another engine, added them.

They are told from K2's by their field ids, which outlive any renaming. The sink fills those that
the log's records have a field for; a column that was dropped stays, is empty from then on, and is
no longer filled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pyarrow as pa
import structlog
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.types import IcebergType, NestedField

from k2.codec.evolution import Step
from k2.errors import LakeError
from k2.lake.columns import FIELD_ID
from k2.lake.tables import COLUMN_TYPES, TableDef

log = structlog.get_logger(__name__)

DROPPED: Final = "(dropped) "
_TRIES: Final = 10


def added_columns(table: TableDef, schema: Schema) -> list[NestedField]:
    """Columns of `schema` that are not K2's, the dropped ones included."""
    own = {field.field_id for field in table.schema.fields}
    return [field for field in schema.fields if field.field_id not in own]


def is_dropped(column: NestedField) -> bool:
    return (column.doc or "").startswith(DROPPED)


def arrow_fields(table: TableDef, schema: Schema) -> list[pa.Field]:
    """What the sink fills and SQL shows: added columns of types K2 writes, with their field ids."""
    found = []
    for column in added_columns(table, schema):
        kind = _arrow(column.field_type)
        if kind is not None and not is_dropped(column):
            mark = {FIELD_ID: str(column.field_id).encode()}
            found.append(pa.field(column.name, kind, metadata=mark))
    return found


def _arrow(kind: IcebergType) -> pa.DataType | None:
    return next((arrow for iceberg, arrow in COLUMN_TYPES.values() if iceberg == kind), None)


def kind_of(column: NestedField) -> str | None:
    """The name of a column's type, as `k2 schema` has it."""
    types = COLUMN_TYPES.items()
    return next((name for name, (iceberg, _) in types if iceberg == column.field_type), None)


def apply(catalog: Catalog, table: TableDef, step: Step) -> bool:
    """Take a step in the table's schema; False when it was taken before. Raises `LakeError`.

    Only metadata changes: files written before and by workers that still run are read by field id.
    """
    for _ in range(_TRIES):
        loaded = catalog.load_table(table.identifier)
        columns = {one.name: one for one in added_columns(table, loaded.schema())}
        try:
            return _STEPS[step.action](loaded, columns, step)
        except CommitFailedException:
            # The sink committed meanwhile; look again.
            log.debug("schema_step_again", table=str(table), column=step.name)
    raise LakeError(
        f"table {table}: its schema could not be changed in {_TRIES} tries, for others commit all "
        "the time; try again",
        table=str(table),
    )


def _add(loaded: Table, columns: dict[str, NestedField], step: Step) -> bool:
    kind = COLUMN_TYPES[step.kind][0]
    if (found := columns.get(step.name)) is not None:
        if found.field_type != kind:
            raise LakeError(
                f"column {step.name!r} is there already as {found.field_type}"
                f"{', dropped before' if is_dropped(found) else ''}; choose another name",
                column=step.name,
            )
        if not is_dropped(found):
            return False
        with loaded.update_schema() as update:
            update.update_column(step.name, doc=step.doc)
        return True
    with loaded.update_schema() as update:
        update.add_column(step.name, kind, doc=step.doc or None, required=False)
    return True


def _widen(loaded: Table, columns: dict[str, NestedField], step: Step) -> bool:
    column = _known(columns, step.name)
    kind = COLUMN_TYPES[step.kind][0]
    if column.field_type == kind:
        return False
    with loaded.update_schema() as update:
        update.update_column(step.name, field_type=kind)
    return True


def _rename(loaded: Table, columns: dict[str, NestedField], step: Step) -> bool:
    if step.name not in columns and step.to in columns:
        return False
    _known(columns, step.name)
    with loaded.update_schema() as update:
        update.rename_column(step.name, step.to)
    return True


def _drop(loaded: Table, columns: dict[str, NestedField], step: Step) -> bool:
    column = _known(columns, step.name)
    if is_dropped(column):
        return False
    with loaded.update_schema() as update:
        update.update_column(step.name, doc=f"{DROPPED}{column.doc or ''}")
    return True


_STEPS: Final[dict[str, Callable[[Table, dict[str, NestedField], Step], bool]]] = {
    "add": _add,
    "widen": _widen,
    "rename": _rename,
    "drop": _drop,
}


def _known(columns: dict[str, NestedField], name: str) -> NestedField:
    if name not in columns:
        raise LakeError(
            f"the table has no added column {name!r}; it has: {', '.join(columns) or '(none)'}",
            column=name,
        )
    return columns[name]
