"""Columns of K2's records: as decoded from the log (`WIRE_*`) and as stored in the lake (`LAKE_*`).

Timestamps are microseconds UTC (without a zone on the wire, which has none). Decimals are text on
the wire and decimal(28,10) in the lake, never floats. A record's place (log_epoch, log_topic,
log_partition, platform_sequence) is not in its bytes: it is where the log has it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from k2.codec.jsontext import map_to_json
from k2.codec.sizes import offsets_of
from k2.decimals import DECIMAL, decimal_words, plain, to_decimal
from k2.errors import SchemaError

_UTC: Final = pa.timestamp("us", tz="UTC")
_US: Final = pa.timestamp("us")
#: Of `vendor_data` on the wire.
VENDOR_MAP: Final = pa.map_(pa.string(), pa.field("value", pa.string(), nullable=False))


def _schema(*required: tuple[str, pa.DataType], optional: tuple[str, ...] = ()) -> pa.Schema:
    return pa.schema([pa.field(name, type_, name in optional) for name, type_ in required])


_TEXT: Final = pa.string()
_HEAD: Final = (("symbol", _TEXT), ("exchange", _TEXT), ("asset_class", _TEXT))
_CLOCKS: Final = ("timestamp", "receive_timestamp", "ingestion_timestamp")
_TRADE_DECIMALS: Final = ("price", "quantity")
_QUOTE_DECIMALS: Final = ("bid_price", "bid_quantity", "ask_price", "ask_quantity")
_REFERENCE_DECIMALS: Final = ("tick_size", "lot_size", "min_notional")
_REFERENCE_TEXTS: Final = ("name", "isin", "status", "base_asset", "quote_asset", "currency")
_PLACE: Final = (
    ("log_epoch", _TEXT),
    ("log_topic", _TEXT),
    ("log_partition", pa.int32()),
    ("platform_sequence", pa.int64()),
)

WIRE_TRADES: Final = _schema(
    ("message_id", _TEXT),
    ("trade_id", _TEXT),
    *_HEAD,
    *((name, _US) for name in _CLOCKS),
    *((name, _TEXT) for name in _TRADE_DECIMALS),
    ("currency", _TEXT),
    ("side", _TEXT),
    ("trade_conditions", pa.list_(pa.string())),
    ("source_sequence", pa.int64()),
    ("vendor_data", VENDOR_MAP),
    ("is_backfill", pa.bool_()),
    optional=("source_sequence", "vendor_data"),
)
#: First and last trade of an aggregate; in its columns they come after the id.
_AGGREGATE: Final = (("first_trade_id", pa.int64()), ("last_trade_id", pa.int64()))
_AFTER_ID: Final = 2


def _aggregated(trades: pa.Schema) -> pa.Schema:
    fields = [pa.field(name, type_, False) for name, type_ in _AGGREGATE]
    return pa.schema([*list(trades)[:_AFTER_ID], *fields, *list(trades)[_AFTER_ID:]])


WIRE_AGG_TRADES: Final = _aggregated(WIRE_TRADES)
WIRE_QUOTES: Final = _schema(
    ("message_id", _TEXT),
    ("quote_id", _TEXT),
    *_HEAD,
    *((name, _US) for name in _CLOCKS),
    *((name, _TEXT) for name in _QUOTE_DECIMALS),
    ("currency", _TEXT),
    ("source_sequence", pa.int64()),
    ("vendor_data", VENDOR_MAP),
    ("is_backfill", pa.bool_()),
    optional=("source_sequence", "vendor_data"),
)
WIRE_REFERENCE: Final = _schema(
    ("message_id", _TEXT),
    ("reference_id", _TEXT),
    *_HEAD,
    *((name, _US) for name in _CLOCKS),
    *((name, _TEXT) for name in _REFERENCE_TEXTS),
    *((name, _TEXT) for name in _REFERENCE_DECIMALS),
    ("vendor_data", VENDOR_MAP),
    ("is_backfill", pa.bool_()),
    optional=("vendor_data",),
)
WIRE_GAPS: Final = _schema(
    ("message_id", _TEXT),
    ("symbol", _TEXT),
    ("exchange", _TEXT),
    ("data_type", _TEXT),
    ("event", _TEXT),
    ("first_id", pa.int64()),
    ("last_id", pa.int64()),
    ("detected_at", _US),
    ("how", _TEXT),
    ("log_offset", pa.int64()),
    ("ordinal", pa.int32()),
)
WIRE_DEAD_LETTERS: Final = _schema(
    ("reason", _TEXT),
    ("detail", _TEXT),
    ("topic", _TEXT),
    ("partition", pa.int32()),
    ("offset", pa.int64()),
    ("log_epoch", _TEXT),
    ("timestamp", _US),
    ("key", pa.binary()),
    ("value", pa.binary()),
    ("letter", _TEXT),
    optional=("key", "value", "letter"),
)
LAKE_TRADES: Final = _schema(
    ("message_id", _TEXT),
    ("trade_id", _TEXT),
    *_HEAD,
    *((name, _UTC) for name in _CLOCKS),
    *((name, DECIMAL) for name in _TRADE_DECIMALS),
    ("currency", _TEXT),
    ("side", _TEXT),
    ("trade_conditions", pa.list_(pa.string())),
    ("source_sequence", pa.int64()),
    ("vendor_data", _TEXT),
    ("is_backfill", pa.bool_()),
    *_PLACE,
    optional=("trade_conditions", "source_sequence", "vendor_data"),
)
LAKE_AGG_TRADES: Final = _aggregated(LAKE_TRADES)
LAKE_QUOTES: Final = _schema(
    ("message_id", _TEXT),
    ("quote_id", _TEXT),
    *_HEAD,
    *((name, _UTC) for name in _CLOCKS),
    *((name, DECIMAL) for name in _QUOTE_DECIMALS),
    ("currency", _TEXT),
    ("quote_conditions", pa.list_(pa.string())),
    ("source_sequence", pa.int64()),
    ("vendor_data", _TEXT),
    ("is_backfill", pa.bool_()),
    *_PLACE,
    optional=("quote_conditions", "source_sequence", "vendor_data"),
)
LAKE_REFERENCE: Final = _schema(
    ("message_id", _TEXT),
    ("reference_id", _TEXT),
    *_HEAD,
    *((name, _UTC) for name in _CLOCKS),
    *((name, _TEXT) for name in _REFERENCE_TEXTS),
    *((name, DECIMAL) for name in _REFERENCE_DECIMALS),
    ("vendor_data", _TEXT),
    *_PLACE,
    optional=("vendor_data",),
)
LAKE_GAPS: Final = _schema(
    ("message_id", _TEXT),
    ("detected_at", _UTC),
    ("symbol", _TEXT),
    ("exchange", _TEXT),
    ("data_type", _TEXT),
    ("event", _TEXT),
    ("expected", pa.int64()),
    ("received", pa.int64()),
    ("size", pa.int64()),
    ("how", _TEXT),
    *_PLACE,
)
WIRE: Final[Mapping[str, pa.Schema]] = {
    "trades": WIRE_TRADES,
    "agg_trades": WIRE_AGG_TRADES,
    "quotes": WIRE_QUOTES,
    "reference_data": WIRE_REFERENCE,
    "gaps": WIRE_GAPS,
    "dlq": WIRE_DEAD_LETTERS,
}
LAKE: Final[Mapping[str, pa.Schema]] = {
    "trades": LAKE_TRADES,
    "agg_trades": LAKE_AGG_TRADES,
    "quotes": LAKE_QUOTES,
    "reference_data": LAKE_REFERENCE,
    "gaps": LAKE_GAPS,
}
#: The lake's columns without the place, which come last.
_PLACELESS: Final[Mapping[str, pa.Schema]] = {
    kind: pa.schema(list(schema)[: -len(_PLACE)]) for kind, schema in LAKE.items()
}
#: Columns that are decimal text on the wire.
DECIMALS: Final[Mapping[str, tuple[str, ...]]] = {
    "trades": _TRADE_DECIMALS,
    "agg_trades": _TRADE_DECIMALS,
    "quotes": _QUOTE_DECIMALS,
    "reference_data": _REFERENCE_DECIMALS,
}
#: Column with the exchange's own id.
ID_COLUMN: Final[Mapping[str, str]] = {
    "trades": "trade_id",
    "agg_trades": "trade_id",
    "quotes": "quote_id",
    "reference_data": "reference_id",
}
#: At `quote_flags`' value minus one.
QUOTE_CONDITIONS: Final = ("CROSSED", "LOCKED", "ONE_SIDED")


class Span(TypedDict):
    """Where records are in their log of record; `sequences`: each one's offset there."""

    epoch: str
    topic: str
    partition: int
    sequences: npt.NDArray[np.int64]


def to_lake(
    kind: str, batch: pa.RecordBatch, *, added: Sequence[pa.Field] = (), **span: Unpack[Span]
) -> pa.RecordBatch:
    """Decoded records as rows of the lake's table, in the same order.

    `added`: columns the table has beyond K2's; null where the records have no such field. For gaps,
    whose records say themselves which offset showed them, `sequences` is not used. Raises
    `DecodeError` on decimals the rules would have refused.
    """
    if kind == "gaps":
        span["sequences"] = batch.column("log_offset").to_numpy()
    return placed(kind, lake_columns(kind, batch, added), added=added, **span)


def lake_columns(
    kind: str, batch: pa.RecordBatch, added: Sequence[pa.Field] = ()
) -> pa.RecordBatch:
    """What `to_lake` gives, but for the place of each record; `placed` puts it in."""
    derive = _DERIVED.get(kind)
    made = {} if derive is None else derive(batch)
    schema = _PLACELESS[kind]
    columns = [
        made[field.name] if field.name in made else _lake_column(batch.column(field.name), field)
        for field in schema
    ]
    columns += [_added_column(batch, field) for field in added]
    return pa.RecordBatch.from_arrays(columns, schema=_grown(schema, added))


def placed(
    kind: str, rows: pa.RecordBatch, *, added: Sequence[pa.Field] = (), **span: Unpack[Span]
) -> pa.RecordBatch:
    """`lake_columns` of one partition, with their place."""
    count, own = rows.num_rows, len(_PLACELESS[kind])
    place = [
        pa.repeat(span["epoch"], count),
        pa.repeat(span["topic"], count),
        pa.repeat(pa.scalar(span["partition"], pa.int32()), count),
        pa.array(span["sequences"], pa.int64()),
    ]
    columns = [*rows.columns[:own], *place, *rows.columns[own:]]
    return pa.RecordBatch.from_arrays(columns, schema=_grown(LAKE[kind], added))


def _grown(schema: pa.Schema, added: Sequence[pa.Field]) -> pa.Schema:
    return pa.schema([*schema, *added]) if added else schema


def _added_column(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    if field.name not in batch.schema.names:
        return pa.nulls(batch.num_rows, field.type)
    return _lake_column(batch.column(field.name), field)


def _lake_column(column: pa.Array, field: pa.Field) -> pa.Array:
    if field.type == DECIMAL:
        return to_decimal(column, field.name)
    if pa.types.is_map(column.type):
        return map_to_json(column)
    if column.type == field.type:
        return column
    if column.type == _US and field.type == _UTC:
        # Naming the zone changes no value.
        return column.view(field.type)
    return column.cast(field.type)


def _quote_columns(batch: pa.RecordBatch) -> dict[str, pa.Array]:
    prices = {name: to_decimal(batch.column(name), name) for name in _QUOTE_DECIMALS}
    flags = quote_flags(prices["bid_price"], prices["ask_price"])
    offsets = np.zeros(len(flags) + 1, np.int32)
    np.cumsum(flags != 0, out=offsets[1:])
    names = pa.array(QUOTE_CONDITIONS).take(pa.array(flags[flags != 0] - 1))
    return {**prices, "quote_conditions": pa.ListArray.from_arrays(pa.array(offsets), names)}


def quote_flags(bid: pa.Array, ask: pa.Array) -> npt.NDArray[np.int8]:
    """int8 per row: 0, or 1 + the index in `QUOTE_CONDITIONS`. `bid`, `ask`: decimal prices.

    A side at 0 is absent, so such a quote is one-sided and neither crossed nor locked.
    """
    (bid_high, bid_low), (ask_high, ask_low) = decimal_words(bid), decimal_words(ask)
    flags = np.zeros(len(bid), np.int8)
    same = bid_high == ask_high
    flags[(bid_high > ask_high) | (same & (bid_low > ask_low))] = 1
    flags[same & (bid_low == ask_low)] = 2
    flags[((bid_high == 0) & (bid_low == 0)) | ((ask_high == 0) & (ask_low == 0))] = 3
    return flags


def _mask(array: pa.Array) -> npt.NDArray[np.bool_]:
    mask: npt.NDArray[np.bool_] = array.to_numpy(zero_copy_only=False)
    return mask


def _gap_columns(batch: pa.RecordBatch) -> dict[str, pa.Array]:
    first, last = batch.column("first_id").to_numpy(), batch.column("last_id").to_numpy()
    return {
        "expected": pa.array(first, pa.int64()),
        "received": pa.array(last + 1, pa.int64()),
        "size": pa.array(last - first + 1, pa.int64()),
    }


_DERIVED: Final[Mapping[str, Callable[[pa.RecordBatch], dict[str, pa.Array]]]] = {
    "quotes": _quote_columns,
    "gaps": _gap_columns,
}


def to_wire(kind: str, rows: pa.Table) -> pa.RecordBatch:
    """Rows of the lake as records again: the inverse of `to_lake`, but for the place, which they
    get anew, and for zeros at the end of decimals and columns beyond K2's, which are left out."""
    schema = WIRE[kind]
    columns = [_wire_column(rows[field.name].combine_chunks(), field) for field in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _wire_column(column: pa.Array, field: pa.Field) -> pa.Array:
    if column.type == DECIMAL:
        # Arrow's cast would write 1E-8.
        return pa.array([plain(value) for value in column.to_pylist()], field.type)
    if field.type == VENDOR_MAP:
        given = (None if text is None else json.loads(text) for text in column.to_pylist())
        return pa.array([None if one is None else [*one.items()] for one in given], VENDOR_MAP)
    if pa.types.is_list(field.type):
        return pa.array([[] if one is None else one for one in column.to_pylist()], field.type)
    return column if column.type == field.type else column.cast(field.type)


def build(kind: str, rows: int, columns: Mapping[str, Any]) -> pa.RecordBatch:
    """A wire batch of `rows` records from columns: arrays, lists, or one value for all rows.

    Nullable columns may be left out, `trade_conditions` (empty) and `is_backfill` (false) too.
    `vendor_data` is best made with `vendor_map`. Raises `SchemaError` naming the column.
    """
    schema = WIRE[kind]
    given = {"trade_conditions": pa.scalar([], pa.list_(pa.string())), "is_backfill": False}
    given |= columns
    unknown = sorted(set(columns) - set(schema.names))
    if unknown:
        raise SchemaError(f"records of kind {kind!r} have no column {unknown[0]!r}")
    made = [_column(field, given.get(field.name), rows) for field in schema]
    return pa.RecordBatch.from_arrays(made, schema=schema)


def _column(field: pa.Field, value: Any, rows: int) -> pa.Array:
    try:
        if value is None and field.nullable:
            return pa.nulls(rows, field.type)
        if isinstance(value, pa.Array):
            made = value if value.type == field.type else value.cast(field.type)
        elif isinstance(value, (list, np.ndarray)):
            made = pa.array(value, field.type)
        else:
            scalar = isinstance(value, pa.Scalar)
            one = value.cast(field.type) if scalar else pa.scalar(value, field.type)
            made = pa.repeat(one, rows) if rows else pa.array([], field.type)
    except (pa.ArrowException, TypeError, OverflowError) as exc:
        raise SchemaError(f"column {field.name!r} is not {field.type}: {exc}") from exc
    if len(made) != rows or (made.null_count and not field.nullable):
        raise SchemaError(
            f"column {field.name!r} has {len(made)} values, {made.null_count} of them null; "
            f"it must have {rows}{'' if field.nullable else ' and no null'}"
        )
    return made


def vendor_map(rows: int, columns: Mapping[str, pa.Array | str]) -> pa.Array:
    """The `vendor_data` column with the same keys in each row; a text is the value of all rows."""
    width = len(columns)
    pool, index = [], np.empty((rows, width), np.int64)
    start = 0
    for position, value in enumerate(columns.values()):
        constant = isinstance(value, str)
        part = pa.array([value]) if constant else value
        index[:, position] = start if constant else np.arange(start, start + rows)
        pool.append(part)
        start += len(part)
    keys = pa.array(list(columns), pa.string())
    key_index = np.tile(np.arange(width), rows)
    return pa.MapArray.from_arrays(
        pa.array(np.arange(rows + 1, dtype=np.int32) * width),
        keys.take(pa.array(key_index)),
        pa.concat_arrays(pool).take(pa.array(index.ravel())),
        type=VENDOR_MAP,
    )


#: Digits of an int64 id, minus one, per power of ten.
_POWERS: Final = 10 ** np.arange(1, 19, dtype=np.int64)
_ID_PATTERN: Final = "^(0|[1-9][0-9]{0,18})$"


def ids_of(kind: str, batch: pa.RecordBatch) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The exchange's ids as int64, and which of them are.

    Only the one spelling of a number counts (no sign, no leading zero), so that two texts never
    become one id; ids of tapes (`{digest}-{row}`) are not numbers. Invalid ids are 0.
    """
    text = batch.column(ID_COLUMN[kind])
    try:
        ids = text.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        return _ids_apart(text)
    lengths = np.diff(offsets_of(text))
    valid = (ids >= 0) & (lengths == _digits(ids))
    if valid.all():
        return ids, valid
    return np.where(valid, ids, 0), valid


def _digits(ids: npt.NDArray[np.int64]) -> Any:
    """Decimal digits of each id; ids of one batch mostly have the same number."""
    if len(ids) and ids.min() >= 0 and len(str(ids.min())) == len(str(ids.max())):
        return len(str(ids.max()))
    return np.searchsorted(_POWERS, ids, side="right") + 1


def _ids_apart(text: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    valid = _mask(pc.match_substring_regex(text, _ID_PATTERN))
    for row in np.flatnonzero(valid & (np.diff(offsets_of(text)) == 19)):
        # Only 19 digits can pass the pattern and still be above int64.
        valid[row] = int(text[int(row)].as_py()) < 2**63
    ids = np.zeros(len(text), np.int64)
    ids[valid] = text.filter(pa.array(valid)).cast(pa.int64()).to_numpy()
    return ids, valid
