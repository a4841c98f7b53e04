"""The tables of the lake: schema, partitions, order and properties, in one place.

Field ids are part of the contract: Parquet files carry them and readers map columns by them, so a
column is only ever added (with the next id), never renumbered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import pyarrow as pa
import structlog
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import (
    NamespaceAlreadyExistsError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.sorting import NullOrder, SortDirection, SortField, SortOrder
from pyiceberg.transforms import BucketTransform, DayTransform, IdentityTransform
from pyiceberg.types import (
    BooleanType,
    DecimalType,
    IcebergType,
    IntegerType,
    ListType,
    LongType,
    NestedField,
    StringType,
    TimestamptzType,
)
from sqlalchemy.exc import IntegrityError

from k2.errors import LakeError
from k2.lake.columns import FIELD_ID

log = structlog.get_logger(__name__)

NAMESPACE: Final = "market_data"
BUCKETS: Final = 16
_MS_PER_DAY: Final = 86_400_000

#: Iceberg type and Arrow type of every type name used below.
COLUMN_TYPES: Final[Mapping[str, tuple[IcebergType, pa.DataType]]] = {
    "string": (StringType(), pa.string()),
    "timestamptz": (TimestamptzType(), pa.timestamp("us", tz="UTC")),
    # Ten decimals hold every exchange's prices; 18 digits before the point leave room for sums.
    "decimal": (DecimalType(28, 10), pa.decimal128(28, 10)),
    # Sums: more digits before the point, or the exact product of two decimals after it.
    "sum": (DecimalType(38, 10), pa.decimal128(38, 10)),
    "notional": (DecimalType(38, 20), pa.decimal128(38, 20)),
    "long": (LongType(), pa.int64()),
    "int": (IntegerType(), pa.int32()),
    "boolean": (BooleanType(), pa.bool_()),
}

#: name, type ("!" means required), meaning. The order gives the field ids, from 1.
_Columns = tuple[tuple[str, str, str], ...]

_IDENTITY: Final[_Columns] = (
    ("symbol", "string!", "Instrument, upper case, without separator"),
    ("exchange", "string!", "Exchange, upper case"),
    ("asset_class", "string!", "crypto, equities, futures or options"),
    ("timestamp", "timestamptz!", "Exchange time, UTC"),
    ("receive_timestamp", "timestamptz!", "When the frame came out of the socket, UTC"),
    ("ingestion_timestamp", "timestamptz!", "When the record was handed to the log, UTC"),
)
_EXTRAS: Final[_Columns] = (
    ("source_sequence", "long", "The exchange's own sequence number, where it has one"),
    ("vendor_data", "string", "What the exchange sent beyond these columns, JSON text"),
    ("is_backfill", "boolean!", "True when fetched afterwards to close a gap"),
)
_PLACE: Final[_Columns] = (
    ("log_epoch", "string!", "Incarnation of the log of record"),
    ("log_topic", "string!", "The log of record"),
    ("log_partition", "int!", "Partition of the log of record"),
    ("platform_sequence", "long!", "The record's offset in the log of record"),
)

_TRADES: Final[_Columns] = (
    ("message_id", "string!", "{exchange}:{timestamp_ms}:{symbol}:{trade_id}"),
    ("trade_id", "string!", "The exchange's own id"),
    *_IDENTITY,
    ("price", "decimal!", "Price, exact"),
    ("quantity", "decimal!", "Quantity, exact"),
    ("currency", "string!", "Currency of the price"),
    ("side", "string!", "Side of the aggressor: BUY, SELL, SELL_SHORT or UNKNOWN"),
    ("trade_conditions", "list", "The exchange's condition codes"),
    *_EXTRAS,
    *_PLACE,
)
_AGG_TRADES: Final[_Columns] = (
    ("message_id", "string!", "{exchange}:{timestamp_ms}:{symbol}:{trade_id}"),
    ("trade_id", "string!", "The exchange's own id of the aggregate"),
    ("first_trade_id", "long!", "Id of its first trade"),
    ("last_trade_id", "long!", "Id of its last trade"),
    *_TRADES[2:],
)
_QUOTES: Final[_Columns] = (
    ("message_id", "string!", "{exchange}:{timestamp_ms}:{symbol}:{quote_id}"),
    ("quote_id", "string!", "The exchange's own update id"),
    *_IDENTITY,
    ("bid_price", "decimal!", "Best bid, exact"),
    ("bid_quantity", "decimal!", "Quantity at the best bid, exact"),
    ("ask_price", "decimal!", "Best ask, exact"),
    ("ask_quantity", "decimal!", "Quantity at the best ask, exact"),
    ("currency", "string!", "Currency of the prices"),
    ("quote_conditions", "list", "CROSSED, LOCKED, ONE_SIDED"),
    *_EXTRAS,
    *_PLACE,
)
_REFERENCE: Final[_Columns] = (
    ("message_id", "string!", "{exchange}:{timestamp_ms}:{symbol}:{reference_id}"),
    ("reference_id", "string!", "Digest of the file and entry in it"),
    ("symbol", "string!", "Instrument, upper case, without separator"),
    ("exchange", "string!", "Exchange, upper case"),
    ("asset_class", "string!", "crypto, equities, futures or options"),
    ("timestamp", "timestamptz!", "From when on the row holds, UTC; until the next of its symbol"),
    ("receive_timestamp", "timestamptz!", "When the file was read, UTC"),
    ("ingestion_timestamp", "timestamptz!", "When the record was handed to the log, UTC"),
    ("name", "string!", "Name of the company or instrument; empty: none"),
    ("isin", "string!", "ISO 6166 number; empty: none"),
    ("status", "string!", "The venue's word for whether it trades; empty: none"),
    ("base_asset", "string!", "What is traded"),
    ("quote_asset", "string!", "What it is paid with"),
    ("currency", "string!", "Currency of prices"),
    ("tick_size", "decimal!", "Least step of a price; 0: not named"),
    ("lot_size", "decimal!", "Least step of a quantity; 0: not named"),
    ("min_notional", "decimal!", "Least value of an order; 0: not named"),
    ("vendor_data", "string", "What the venue says beyond these columns, JSON text"),
    *_PLACE,
)
_GAPS: Final[_Columns] = (
    ("message_id", "string!", "Identity of the event"),
    ("detected_at", "timestamptz!", "When the gap was seen or closed, UTC"),
    ("symbol", "string!", "Instrument"),
    ("exchange", "string!", "Exchange, upper case"),
    ("data_type", "string!", "trades or quotes"),
    ("event", "string!", "opened or closed"),
    ("expected", "long!", "First missing id"),
    ("received", "long!", "Last missing id + 1"),
    ("size", "long!", "How many ids"),
    ("how", "string!", "jump, late or backfill"),
    *_PLACE,
)

_CANDLES: Final[_Columns] = (
    ("symbol", "string!", "Instrument, upper case, without separator"),
    ("exchange", "string!", "Exchange, upper case"),
    ("timeframe", "string!", "1m, 5m, 15m, 30m, 1h or 1d"),
    ("window_start", "timestamptz!", "First moment of the window, UTC"),
    ("window_end", "timestamptz!", "First moment after the window, UTC"),
    ("version", "long!", "Rises with each correction of the window; the highest counts"),
    ("open", "decimal!", "Price of the first trade"),
    ("high", "decimal!", "Highest price"),
    ("low", "decimal!", "Lowest price"),
    ("close", "decimal!", "Price of the last trade"),
    ("volume", "sum!", "Sum of quantities, exact"),
    ("vwap", "decimal", "notional / volume with 8 decimals, rounded half up"),
    ("notional", "notional", "Sum of price * quantity, exact; null above 10^18"),
    ("trade_count", "long!", "How many trades"),
    ("first_timestamp", "timestamptz!", "Exchange time of the first trade"),
    ("first_sequence", "long!", "platform_sequence of the first trade"),
    ("last_timestamp", "timestamptz!", "Exchange time of the last trade"),
    ("last_sequence", "long!", "platform_sequence of the last trade"),
    ("updated_at", "timestamptz!", "When the version was made, UTC"),
)
_CORRECTIONS: Final[_Columns] = (
    ("correction_id", "string!", "Identity: the same correction of the same trade has the same"),
    ("corrected_at", "timestamptz!", "When it was asked for, UTC"),
    ("action", "string!", "cancel or replace"),
    ("reason", "string!", "Why, in the words of whoever asked"),
    ("message_id", "string!", "The trade's identity"),
    ("trade_id", "string!", "The exchange's own id"),
    ("symbol", "string!", "Instrument"),
    ("exchange", "string!", "Exchange, upper case"),
    ("timestamp", "timestamptz!", "Exchange time of the trade, UTC"),
    ("old_price", "decimal!", "Price before"),
    ("old_quantity", "decimal!", "Quantity before"),
    ("old_side", "string!", "Side before"),
    ("new_price", "decimal", "Price after; null when cancelled"),
    ("new_quantity", "decimal", "Quantity after; null when cancelled"),
    ("new_side", "string", "Side after; null when cancelled"),
    *_PLACE,
)

#: Columns whose least and greatest value go into the manifests: what planning and seeding prune by.
#: Bounds of other columns would only make every manifest larger.
BOUNDED: Final = (
    "symbol",
    "exchange",
    "timestamp",
    "detected_at",
    "window_start",
    "log_epoch",
    "log_topic",
    "log_partition",
    "platform_sequence",
)


@dataclass(frozen=True)
class TableDef:
    """One table: its columns in order, the column that is its time, and what orders equal times.

    `version_of`: rows that are the same in these are versions of one thing, of which the highest
    `order_column` counts; empty: every row counts.
    """

    name: str
    columns: _Columns
    time_column: str
    order_column: str = "platform_sequence"
    version_of: tuple[str, ...] = ()

    @property
    def identifier(self) -> tuple[str, str]:
        return (NAMESPACE, self.name)

    def __str__(self) -> str:
        return f"{NAMESPACE}.{self.name}"

    @cached_property
    def schema(self) -> Schema:
        """Iceberg schema; ids 1..n for columns, then one for each list's element."""
        fields, next_id = [], len(self.columns) + 1
        for field_id, (name, kind, doc) in enumerate(self.columns, start=1):
            if kind == "list":
                of: IcebergType = ListType(next_id, StringType(), element_required=False)
                next_id += 1
            else:
                of = COLUMN_TYPES[kind.rstrip("!")][0]
            fields.append(NestedField(field_id, name, of, required=kind.endswith("!"), doc=doc))
        return Schema(*fields)

    @cached_property
    def arrow_schema(self) -> pa.Schema:
        """What writers hand in: names, types and nullability, with Parquet field ids."""
        fields = []
        for field in self.schema.fields:
            if isinstance(field.field_type, ListType):
                element = pa.field(
                    "element", pa.string(), metadata=_id(field.field_type.element_id)
                )
                of = pa.list_(element)
            else:
                of = next(
                    arrow for kind, arrow in COLUMN_TYPES.values() if kind == field.field_type
                )
            fields.append(
                pa.field(field.name, of, nullable=not field.required, metadata=_id(field.field_id))
            )
        return pa.schema(fields)

    @cached_property
    def partition_spec(self) -> PartitionSpec:
        day, bucket = self._id_of(self.time_column), self._id_of("symbol")
        return PartitionSpec(
            PartitionField(day, 1000, DayTransform(), f"{self.time_column}_day"),
            PartitionField(bucket, 1001, BucketTransform(BUCKETS), "symbol_bucket"),
        )

    @cached_property
    def sort_order(self) -> SortOrder:
        return SortOrder(
            *(
                SortField(
                    self._id_of(name), IdentityTransform(), SortDirection.ASC, NullOrder.NULLS_FIRST
                )
                for name in self.sort_columns
            )
        )

    @property
    def sort_columns(self) -> tuple[str, str, str]:
        return ("symbol", self.time_column, self.order_column)

    @cached_property
    def bounded(self) -> tuple[str, ...]:
        return tuple(name for name, _, _ in self.columns if name in BOUNDED)

    def properties(self, compression: str) -> dict[str, str]:
        """Iceberg table properties; `compression` is the setting's Parquet codec."""
        return {
            "format-version": "2",
            "write.format.default": "parquet",
            "write.parquet.compression-codec": "uncompressed"
            if compression == "none"
            else compression,
            # Rows are sorted by symbol: small row groups let a symbol query skip most of a file.
            "write.parquet.row-group-limit": "131072",
            "write.target-file-size-bytes": str(128 * 1024 * 1024),
            "write.metadata.metrics.default": "none",
            **{f"write.metadata.metrics.column.{name}": "full" for name in self.bounded},
            "write.metadata.delete-after-commit.enabled": "true",
            "write.metadata.previous-versions-max": "20",
            "commit.manifest-merge.enabled": "true",
            "commit.manifest.target-size-bytes": str(8 * 1024 * 1024),
            # Other engines' expiry must not take the history K2 keeps: their default is 5 days.
            "history.expire.max-snapshot-age-ms": str(90 * _MS_PER_DAY),
            "history.expire.min-snapshots-to-keep": "100",
        }

    def _id_of(self, name: str) -> int:
        return self.schema.find_field(name).field_id


def _id(field_id: int) -> dict[bytes, bytes]:
    return {FIELD_ID: str(field_id).encode()}


TRADES: Final = TableDef("trades", _TRADES, "timestamp")
QUOTES: Final = TableDef("quotes", _QUOTES, "timestamp")
GAPS: Final = TableDef("gaps", _GAPS, "detected_at")
AGG_TRADES: Final = TableDef("agg_trades", _AGG_TRADES, "timestamp")
REFERENCE: Final = TableDef("reference_data", _REFERENCE, "timestamp")
CANDLES: Final = TableDef(
    "candles",
    _CANDLES,
    "window_start",
    "version",
    ("symbol", "exchange", "timeframe", "window_start"),
)
#: What was changed by hand; made by the first correction.
CORRECTIONS: Final = TableDef("corrections", _CORRECTIONS, "corrected_at")
TABLES: Final[Mapping[str, TableDef]] = {
    table.name: table for table in (TRADES, QUOTES, GAPS, AGG_TRADES, REFERENCE, CANDLES)
}


def ensure_table(catalog: Catalog, table: TableDef, compression: str) -> Table:
    """Open `table`, creating it when missing. Raises `LakeError` when it is there but different."""
    try:
        found = catalog.load_table(table.identifier)
    except NoSuchTableError:
        found = _create(catalog, table, compression)
    verify(table, found.metadata)
    return found


def ensure_tables(catalog: Catalog, compression: str) -> dict[str, Table]:
    """All of K2's tables by name, created where missing."""
    return {name: ensure_table(catalog, table, compression) for name, table in TABLES.items()}


def _create(catalog: Catalog, table: TableDef, compression: str) -> Table:
    try:
        catalog.create_namespace(NAMESPACE)
    except (NamespaceAlreadyExistsError, IntegrityError):
        # The latter from a SQL catalog in which another worker made it at the same moment.
        log.debug("lake_namespace_present", namespace=NAMESPACE)
    try:
        created = catalog.create_table(
            table.identifier,
            schema=table.schema,
            partition_spec=table.partition_spec,
            sort_order=table.sort_order,
            properties=table.properties(compression),
        )
    except TableAlreadyExistsError:
        # Another worker was faster; its table is verified like any other.
        return catalog.load_table(table.identifier)
    log.info("lake_table_created", table=str(table), location=created.location())
    return created


def verify(table: TableDef, metadata: TableMetadata) -> None:
    """Compare the table in the catalog with ours. Raises `LakeError` naming column and remedy.

    More columns than ours are fine as long as they are optional; properties are the operator's.
    """
    found = {field.name: field for field in metadata.schema().fields}
    for field in table.schema.fields:
        other = found.pop(field.name, None)
        if other is None:
            raise _mismatch(table, field.name, "is missing", f"add it as {field.field_type}")
        ours = (field.field_id, field.field_type, field.required)
        theirs = (other.field_id, other.field_type, other.required)
        if ours != theirs:
            raise _mismatch(
                table,
                field.name,
                f"has (id, type, required) {_text(theirs)} instead of {_text(ours)}",
                "write it anew",
            )
    for name, other in found.items():
        if other.required:
            raise _mismatch(table, name, "is required but unknown to K2", "make it optional")
    if metadata.spec().fields != table.partition_spec.fields:
        raise _mismatch(
            table,
            ", ".join(field.name for field in table.partition_spec.fields),
            f"is not how the table is partitioned: {metadata.spec()}",
            "restore the partition spec",
        )


def _text(parts: tuple[object, ...]) -> str:
    return f"({', '.join(map(str, parts))})"


def _mismatch(table: TableDef, column: str, what: str, remedy: str) -> LakeError:
    return LakeError(
        f"table {table}: column {column!r} {what}; {remedy}, or point K2_ICEBERG_CATALOG_URI and "
        "K2_DATA_DIR at another lake",
        table=str(table),
        column=column,
    )
