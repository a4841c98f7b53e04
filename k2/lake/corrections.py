"""What was corrected by hand: one row per trade, in a table of its own.

A cancelled trade is gone from its table, yet its id stays known: continuity is seeded with it, so a
replay does not bring it back. The row is written before the trade is touched: a crash between the
two leaves a trade to be corrected again, never one that is gone without a word.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.expressions import And, BooleanExpression, EqualTo, In

from k2.lake.tables import CORRECTIONS, ensure_table
from k2.lake.writer import LakeWriter

CANCEL: Final = "cancel"
REPLACE: Final = "replace"


def known(catalog: Catalog, ids: Collection[str]) -> set[str]:
    """Which of these corrections are noted already."""
    found = _scan(catalog, In(term="correction_id", literals=set(ids)), ("correction_id",))
    return set() if found is None else set(found["correction_id"].to_pylist())


def note(catalog: Catalog, rows: pa.Table, compression: str) -> None:
    """Store corrections, making the table at the first. Raises `LakeError`."""
    ensure_table(catalog, CORRECTIONS, compression)
    writer = LakeWriter(catalog, CORRECTIONS)
    try:
        # No positions: these rows do not come from the log.
        writer.commit(rows, {}, {})
    finally:
        writer.close()


def cancelled(
    catalog: Catalog, exchange: str, symbols: Iterable[str], columns: Collection[str]
) -> pa.Table | None:
    """The cancelled trades of an exchange and its symbols; None when nothing was ever corrected."""
    mine = And(EqualTo(term="exchange", value=exchange), In(term="symbol", literals=set(symbols)))
    return _scan(catalog, And(EqualTo(term="action", value=CANCEL), mine), tuple(columns))


def _scan(catalog: Catalog, rows: BooleanExpression, columns: tuple[str, ...]) -> pa.Table | None:
    try:
        table = catalog.load_table(CORRECTIONS.identifier)
    except NoSuchTableError:
        return None
    found = table.scan(row_filter=rows, selected_fields=columns).to_arrow()
    schema = pa.schema([CORRECTIONS.arrow_schema.field(name) for name in columns])
    return found.select(list(columns)).cast(pa.schema([f.with_nullable(True) for f in schema]))
