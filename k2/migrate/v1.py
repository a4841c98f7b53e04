"""V1 records (spec section 4) as V2: the same trade in other words.

`volume` is the quantity, milliseconds become microseconds, decimals their exact text; what V2 has
no field for goes to `vendor_data`. A record's id is the place it is read from, so that migrating it
again, in whatever parts, adds nothing.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, NamedTuple

import fastavro
import msgspec
import numpy as np
import pyarrow as pa

from k2.codec.wire import HEADER, MAGIC
from k2.errors import SchemaError
from k2.records import VENDOR_MAP, build
from k2.tapes.rows import OFF_MARKET
from k2.times import micros
from k2.transport.batch import LogBatch

_DIGEST_CHARS: Final = 16
#: Fields of V1 that V2 keeps as text beside its columns.
_EXTRAS: Final = ("company_id", "qualifiers", "venue", "buyer_id")


class BadV1(NamedTuple):
    """A record that is no V1 record: its offset (of a table: its row), why, and its bytes."""

    offset: int
    detail: str
    raw: bytes


class Target(NamedTuple):
    """What V1 does not say."""

    kind: str
    exchange: str
    asset_class: str
    currency: str


def digest_of(epoch: str, topic: str, partition: int) -> str:
    """Names a partition of one incarnation of a topic in ids, as a tape's digest names a file."""
    place = f"{epoch}/{topic}/{partition}"
    return hashlib.sha256(place.encode()).hexdigest()[:_DIGEST_CHARS]


class V1Reader:
    """Decodes V1 values by the schema each names; `schema` asks the registry, blocking."""

    def __init__(self, schema: Callable[[int], str], target: Target) -> None:
        self._schema = schema
        self._target = target
        self._known: dict[int, Any] = {}

    def read(
        self, batch: LogBatch, digest: str, now_us: int
    ) -> tuple[pa.RecordBatch | None, list[BadV1]]:
        """The V2 records of `batch` in their order (None: there are none), and what is none."""
        rows: list[dict[str, Any]] = []
        bad: list[BadV1] = []
        for offset, value in zip(batch.offsets.tolist(), batch.values, strict=True):
            if value is None:
                continue
            try:
                rows.append(self._row(self._decoded(value), f"{digest}-{offset}", batch.topic))
            except (ValueError, KeyError, TypeError, EOFError, IndexError, SchemaError) as exc:
                detail = f"no field {exc}" if isinstance(exc, KeyError) else str(exc) or repr(exc)
                bad.append(BadV1(offset, detail, value))
        return self._batch(rows, now_us), bad

    def read_rows(
        self, found: Sequence[dict[str, Any]], first: int, digest: str, source: str, now_us: int
    ) -> tuple[pa.RecordBatch | None, list[BadV1]]:
        """The same for rows of a V1 table, from row `first` of a file on; times with their zone."""
        rows: list[dict[str, Any]] = []
        bad: list[BadV1] = []
        for number, record in enumerate(found, start=first):
            try:
                rows.append(self._row(record, f"{digest}-{number}", source))
            except (ValueError, KeyError, TypeError) as exc:
                detail = f"no field {exc}" if isinstance(exc, KeyError) else str(exc) or repr(exc)
                bad.append(BadV1(number, detail, repr(record).encode()))
        return self._batch(rows, now_us), bad

    def _decoded(self, value: bytes) -> dict[str, Any]:
        ident = _schema_id(value)
        known = self._known.get(ident)
        if known is None:
            known = fastavro.parse_schema(msgspec.json.decode(self._schema(ident)))
            self._known[ident] = known
        found = fastavro.schemaless_reader(io.BytesIO(value[HEADER.size :]), known, None)
        if not isinstance(found, dict):
            raise TypeError("it is no record")
        return found

    def _row(self, record: Mapping[str, Any], ident: str, topic: str) -> dict[str, Any]:
        target, at = self._target, record["exchange_timestamp"]
        time_us = _micros(at)
        symbol = str(record["symbol"]).upper()
        id_name = "trade_id" if target.kind == "trades" else "quote_id"
        common = {
            "message_id": f"{target.exchange}:{time_us // 1_000}:{symbol}:{ident}",
            id_name: ident,
            "symbol": symbol,
            "timestamp": time_us,
            "receive_timestamp": _micros(record.get("ingestion_timestamp") or at),
            "source_sequence": record.get("sequence_number"),
            "vendor_data": [("migrated_from", topic), *_extras(record)],
        }
        if target.kind == "quotes":
            return {**common, **_quote(record)}
        return {
            **common,
            "price": _text(record["price"]),
            "quantity": _text(record["volume"]),
            "side": "UNKNOWN",
            "trade_conditions": _conditions(record),
        }

    def _batch(self, rows: Sequence[dict[str, Any]], now_us: int) -> pa.RecordBatch | None:
        if not rows:
            return None
        target, count = self._target, len(rows)
        columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
        columns |= {
            "timestamp": np.array(columns["timestamp"], np.int64),
            "receive_timestamp": np.array(columns["receive_timestamp"], np.int64),
            "ingestion_timestamp": np.full(count, now_us, np.int64),
            "exchange": target.exchange,
            "asset_class": target.asset_class,
            "currency": target.currency,
            "vendor_data": pa.array(columns["vendor_data"], VENDOR_MAP),
        }
        return build(target.kind, count, columns)


def _schema_id(value: bytes) -> int:
    if len(value) < HEADER.size or value[0] != MAGIC:
        raise ValueError("it has no Confluent header: 0x00 and a schema id")
    return int(HEADER.unpack_from(value)[1])


def _quote(record: Mapping[str, Any]) -> dict[str, str]:
    return {
        "bid_price": _text(record["bid_price"]),
        "bid_quantity": _text(record["bid_volume"]),
        "ask_price": _text(record["ask_price"]),
        "ask_quantity": _text(record["ask_volume"]),
    }


def _conditions(record: Mapping[str, Any]) -> list[str]:
    """As tapes have them: the qualifier, and that a venue reported the trade."""
    qualifier, venue = record.get("qualifiers"), record.get("venue")
    return [*([str(qualifier)] if qualifier else []), *([OFF_MARKET] if venue else [])]


def _extras(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, str(record[name])) for name in _EXTRAS if record.get(name) not in (None, "")]


def _text(value: Any) -> str:
    if not isinstance(value, int | Decimal) or isinstance(value, bool):
        raise TypeError(f"{value!r} is no exact number")
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def _micros(value: Any) -> int:
    """Of a timestamp-millis, decoded or plain."""
    if isinstance(value, dt.datetime):
        return micros(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is no time")
    return value * 1_000
