"""Rows as JSON text, column by column in Arrow: no Python object per value.

What `k2.query.encode.rows_of` gives through orjson, made for columns of the common types without
leaving Arrow, which also lets other threads run meanwhile; other columns, and values Arrow would
write differently, go value by value.
"""

from __future__ import annotations

import itertools
from typing import Any, Final, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from k2.codec.jsontext import bodies
from k2.codec.sizes import offsets_of
from k2.query.encode import column_names, parsed, rows_of, values_of

#: A flat object of texts without escapes, as K2 writes `vendor_data`: JSON already.
_FLAT_OBJECT: Final = (
    r'^\{(?:"[^"\\\x00-\x1f]*":"[^"\\\x00-\x1f]*"(?:,"[^"\\\x00-\x1f]*":"[^"\\\x00-\x1f]*")*)?\}$'
)
#: Calls cost more than values: so few rows are made one by one.
_FEW_ROWS: Final = 32
#: More values than this are made JSON in a thread; fewer take the event loop 2 ms at most.
INLINE_CELLS: Final = 5_000
#: The years 1 to 9999, which Arrow and ISO 8601 write alike.
_FIRST_US: Final = -62_135_596_800_000_000
_LAST_US: Final = 253_402_300_800_000_000


class _Text(NamedTuple):
    """JSON text of each value, without the quotes when `quoted`; null where the value is."""

    values: pa.Array
    quoted: bool = False


def json_rows(table: pa.Table, *, parse_json: frozenset[str] = frozenset()) -> bytes:
    """A JSON list of one object per row. `parse_json`: text columns that hold JSON."""
    if not table.num_rows or not table.num_columns:
        return b"[]"
    try:
        return _joined(table, parse_json)
    except pa.ArrowCapacityError:
        # More text than one Arrow string holds.
        return orjson.dumps(rows_of(table, parse_json=parse_json))


def json_texts(table: pa.Table, *, parse_json: frozenset[str] = frozenset()) -> list[bytes]:
    """The objects of `json_rows` one by one."""
    if table.num_rows <= _FEW_ROWS:
        return [orjson.dumps(row) for row in rows_of(table, parse_json=parse_json)]
    rows = _objects(table, parse_json)
    ends = offsets_of(rows).tolist()
    text = rows.buffers()[2].to_pybytes()
    return [text[first:last] for first, last in itertools.pairwise(ends)]


def _joined(table: pa.Table, parse_json: frozenset[str]) -> bytes:
    rows = _objects(table, parse_json)
    together = pa.ListArray.from_arrays(pa.array([0, len(rows)], pa.int32()), rows)
    body: bytes = pc.binary_join(together, ",")[0].as_buffer().to_pybytes()
    return b"[" + body + b"]"


def _objects(table: pa.Table, parse_json: frozenset[str]) -> pa.Array:
    """The text of each row."""
    parts: list[Any] = []
    before = "{"
    for name, text in zip(column_names(table), _texts(table, parse_json), strict=True):
        values, quote = text.values, ""
        if text.quoted and values.null_count:
            values = pc.binary_join_element_wise('"', values, '"', "")
        elif text.quoted:
            quote = '"'
        parts += [f"{before}{orjson.dumps(name).decode()}:{quote}", values]
        before = f"{quote},"
    return pc.binary_join_element_wise(
        *parts, before[:-1] + "}", "", null_handling="replace", null_replacement="null"
    )


def _texts(table: pa.Table, parse_json: frozenset[str]) -> list[_Text]:
    """The text of each column. Columns of one type are converted in one go: for the hundred rows
    of a usual answer, calls cost more than values."""
    columns = [_whole(column) for column in table.columns]
    groups: dict[tuple[pa.DataType, bool], list[int]] = {}
    for index, (name, column) in enumerate(zip(table.column_names, columns, strict=True)):
        groups.setdefault((column.type, name in parse_json), []).append(index)
    found: dict[int, _Text] = {}
    for (_, holds_json), members in groups.items():
        text = _text(pa.concat_arrays([columns[index] for index in members]), holds_json)
        for number, index in enumerate(members):
            cut = text.values.slice(number * table.num_rows, table.num_rows)
            found[index] = _Text(cut, text.quoted)
    return [found[index] for index in range(len(columns))]


def _whole(column: pa.ChunkedArray) -> pa.Array:
    found = column.combine_chunks()
    if isinstance(found, pa.ChunkedArray):
        found = pa.concat_arrays(found.chunks)
    return found.dictionary_decode() if pa.types.is_dictionary(found.type) else found


def _text(column: pa.Array, holds_json: bool) -> _Text:
    kind = column.type
    fast: _Text | None = None
    if holds_json:
        fast = _object(column) if pa.types.is_string(kind) else None
    elif pa.types.is_string(kind):
        fast = _Text(bodies(column), quoted=True)
    elif pa.types.is_decimal128(kind):
        fast = _decimal(column)
    elif pa.types.is_timestamp(kind):
        fast = _timestamp(column)
    elif pa.types.is_boolean(kind) or (pa.types.is_integer(kind) and kind != pa.uint64()):
        fast = _Text(column.cast(pa.string()))
    elif pa.types.is_list(kind):
        fast = _empty_lists(column)
    return fast or _one_by_one(column, holds_json)


def _object(column: pa.Array) -> _Text | None:
    flat = pc.all(pc.match_substring_regex(column, _FLAT_OBJECT)).as_py()
    return _Text(column) if flat or column.null_count == len(column) else None


def _decimal(column: pa.Array) -> _Text | None:
    if column.type.scale < 0:
        return None
    text = column.cast(pa.string())
    if column.type.scale == 0:
        return _Text(text, quoted=True)
    if pc.any(pc.match_substring(text, "E")).as_py():
        # Arrow writes small numbers with an exponent.
        return None
    return _Text(pc.ascii_rtrim(pc.ascii_rtrim(text, "0"), "."), quoted=True)


def _timestamp(column: pa.Array) -> _Text | None:
    if column.type.unit != "us" or column.type.tz not in (None, "UTC"):
        return None
    ends = pc.min_max(column.cast(pa.int64()))
    first, last = ends["min"].as_py(), ends["max"].as_py()
    if first is not None and not _FIRST_US <= first <= last < _LAST_US:
        return None
    text = column.cast(pa.string())
    return _Text(pc.replace_substring(text, " ", "T", max_replacements=1), quoted=True)


def _empty_lists(column: pa.Array) -> _Text | None:
    if len(column.flatten()):
        return None
    return _Text(pc.if_else(column.is_valid(), "[]", pa.scalar(None, pa.string())))


def _one_by_one(column: pa.Array, holds_json: bool) -> _Text:
    values = map(parsed, column.to_pylist()) if holds_json else values_of(column)
    texts = [None if value is None else orjson.dumps(value).decode() for value in values]
    return _Text(pa.array(texts, pa.string()))
