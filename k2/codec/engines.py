"""The two Avro readers and writers behind one pair of calls.

`FastEngine` (pyruhvro) handles whole columns but trusts its input: it neither checks UTF-8 nor
notices trailing bytes, and says nothing about which value it failed on. `SlowEngine` (fastavro) is
the reference: exact, value by value, for schemas with bytes, fixed or decimals and for single
values the fast one refuses. Both raise `Malformed`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pyruhvro

from k2.codec import wire
from k2.codec.sizes import non_ascii_rows, row_sizes
from k2.codec.types import arrow_schema, is_fast, name_of, null_branch
from k2.errors import SchemaError


class Malformed(Exception):
    """Some values are not records; `rows` are suspects when they are known."""

    def __init__(self, detail: str, reason: str = wire.DecodeReason.MALFORMED) -> None:
        super().__init__(detail)
        self.detail = detail
        self.reason = reason
        self.rows: list[int] | None = None


def _suspects(rows: Any, detail: str) -> Malformed:
    signal = Malformed(detail)
    signal.rows = [int(row) for row in rows] or None
    return signal


class FastEngine:
    """pyruhvro over whole wire values. `schema_text` must satisfy `types.is_fast`."""

    def __init__(self, schema_text: str, schema_id: int) -> None:
        self.schema = arrow_schema(schema_text)
        self._schema_id = schema_id
        self._fields: list[dict[str, Any]] = json.loads(schema_text)["fields"]
        self._text = wire.with_header(schema_text)

    @staticmethod
    def reads(schema_text: str) -> bool:
        """True when this engine can be used for the schema."""
        return is_fast(json.loads(schema_text))

    def read(self, values: Sequence[bytes | None]) -> pa.RecordBatch:
        """Records of `values`, all of them or `Malformed`."""
        if not values:
            return pa.RecordBatch.from_arrays(
                [pa.array([], type_) for type_ in self.schema.types], schema=self.schema
            )
        whole = self.probe(values)
        wrong = wire.header_mismatches(whole, self._schema_id)
        if len(wrong):
            raise _suspects(wrong, "another header")
        batch = pa.RecordBatch.from_arrays(whole.columns[2:], schema=self.schema)
        try:
            # pyruhvro copies strings without looking; Parquet and DuckDB would store the damage.
            batch.validate(full=True)
        except pa.ArrowInvalid as exc:
            # It names the first only; every row with more than ASCII is worth the reference's look.
            raise _suspects(non_ascii_rows(batch), str(exc)) from exc
        lengths = np.fromiter(map(len, values), np.int64, len(values))  # type: ignore[arg-type]
        longer = np.flatnonzero(row_sizes(self._fields, batch) + wire.HEADER.size != lengths)
        if len(longer):
            raise _suspects(longer, "not the shortest encoding")
        return batch

    def probe(self, values: Sequence[bytes | None]) -> pa.RecordBatch:
        """The columns as pyruhvro gives them, header first, unchecked. Raises `Malformed`."""
        try:
            return pyruhvro.deserialize_array(
                values if isinstance(values, list) else list(values), self._text
            )
        except (ValueError, TypeError) as exc:
            raise Malformed(str(exc)) from exc
        except BaseException as exc:
            # A panic inside pyruhvro arrives as a BaseException that no module exports.
            if type(exc).__name__ != "PanicException":
                raise
            raise Malformed(f"the decoder panicked: {exc}") from exc

    def write(self, batch: pa.RecordBatch) -> list[bytes]:
        """Wire values of `batch`, which has exactly the columns of `schema`."""
        columns = [*wire.header_columns(self._schema_id, batch.num_rows), *batch.columns]
        names = ["wire_magic", "wire_id", *batch.schema.names]
        try:
            chunks = pyruhvro.serialize_record_batch(
                pa.RecordBatch.from_arrays(columns, names=names), self._text, 1
            )
        except ValueError as exc:
            raise SchemaError(f"a batch of {batch.num_rows} rows is not encodable: {exc}") from exc
        encoded: list[bytes] = chunks[0].to_pylist()
        return encoded


class SlowEngine:
    """fastavro, value by value; resolves to the reader's schema when one is given."""

    def __init__(self, writer_text: str, schema_id: int, reader_text: str | None = None) -> None:
        self.schema = arrow_schema(reader_text or writer_text)
        self._header = wire.header(schema_id)
        self._writer = fastavro.parse_schema(_raw(json.loads(writer_text)))
        fields = json.loads(reader_text or writer_text)["fields"]
        self._avro_types = [field["type"] for field in fields]
        # Avro's own int and dates have 32 bits, but nothing stops a writer from writing more.
        self._checked = '"int"' in (reader_text or writer_text)
        self._reader = (
            None if reader_text is None else fastavro.parse_schema(_raw(json.loads(reader_text)))
        )

    def read(self, values: Sequence[bytes | None]) -> pa.RecordBatch:
        """Records of `values`, all of them or `Malformed`."""
        batch, _, bad = self.read_each(values)
        if bad:
            raise Malformed(bad[0].detail, bad[0].reason)
        return batch

    def read_each(
        self, values: Sequence[bytes | None]
    ) -> tuple[pa.RecordBatch, list[int], list[wire.Bad]]:
        """(records of the good values, their rows, the others)."""
        records, rows, bad = [], [], []
        for row, value in enumerate(values):
            try:
                record = self._read_one(value)
                if self._checked:
                    self._to_arrow([record])
            except Malformed as signal:
                bad.append(wire.Bad(row, signal.reason, signal.detail))
                continue
            records.append(record)
            rows.append(row)
        return self._to_arrow(records), rows, bad

    def _read_one(self, value: bytes | None) -> dict[str, Any]:
        if value is None or value[: len(self._header)] != self._header:
            raise Malformed("another header")
        body = _ExactBytes(value[len(self._header) :])
        try:
            record = fastavro.schemaless_reader(body, self._writer, self._reader)
        except Exception as exc:
            # fastavro has no error of its own for damaged input: EOFError, IndexError,
            # UnicodeDecodeError, OverflowError and others come from wherever it stumbled.
            raise Malformed(f"{type(exc).__name__}: {exc}") from exc
        left = len(body.getbuffer()) - body.tell()
        if left:
            raise Malformed(
                f"{left} bytes after the record's {body.tell()}", wire.DecodeReason.TRAILING_BYTES
            )
        assert isinstance(record, dict)
        return record

    def _to_arrow(self, records: list[dict[str, Any]]) -> pa.RecordBatch:
        try:
            columns = [
                pa.array([_arrow_value(avro, record[name]) for record in records], type_)
                for name, avro, type_ in zip(
                    self.schema.names, self._avro_types, self.schema.types, strict=True
                )
            ]
        except (pa.ArrowException, OverflowError) as exc:
            raise Malformed(str(exc)) from exc
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def write(self, batch: pa.RecordBatch) -> list[bytes]:
        """Wire values of `batch`, which has exactly the columns of `schema`."""
        encoded = []
        columns = [
            [_avro_value(avro, value) for value in _integral(column).to_pylist()]
            for avro, column in zip(self._avro_types, batch.columns, strict=True)
        ]
        for row in zip(*columns, strict=True):
            body = io.BytesIO()
            body.write(self._header)
            try:
                fastavro.schemaless_writer(
                    body, self._writer, dict(zip(batch.schema.names, row, strict=True))
                )
            except (ValueError, TypeError, OverflowError) as exc:
                raise SchemaError(f"a record is not encodable: {exc}") from exc
            encoded.append(body.getvalue())
        return encoded


class _ExactBytes(io.BytesIO):
    """A stream whose reads are never short: fastavro takes what it gets."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size < 0:
            raise EOFError("a negative length")
        data = super().read(size)
        if size is not None and len(data) < size:
            raise EOFError("unexpected end of the value")
        return data


def _raw(avro: Any) -> Any:
    """The schema without logical types other than decimals.

    Timestamps then come as integers, so that no value is out of a `datetime`'s range.
    """
    if isinstance(avro, list):
        return [_raw(branch) for branch in avro]
    if not isinstance(avro, dict):
        return avro
    return {
        key: _raw(value) if key in ("type", "items", "values") else _raw_fields(key, value)
        for key, value in avro.items()
        if key != "logicalType" or value == "decimal"
    }


def _raw_fields(key: str, value: Any) -> Any:
    return [_raw(entry) for entry in value] if key == "fields" else value


def _arrow_value(avro: Any, value: Any) -> Any:
    """A value of fastavro as pyarrow takes it: maps are lists of pairs there."""
    nullable = null_branch(avro)
    if value is None or (nullable is None and isinstance(avro, str)):
        return value
    inner = nullable[1] if nullable is not None else avro
    name = name_of(inner)
    if name == "map":
        return [(key, _arrow_value(inner["values"], item)) for key, item in value.items()]
    if name == "array":
        return [_arrow_value(inner["items"], item) for item in value]
    if name == "record":
        return {
            entry["name"]: _arrow_value(entry["type"], value[entry["name"]])
            for entry in inner["fields"]
        }
    return value


def _avro_value(avro: Any, value: Any) -> Any:
    """The inverse of `_arrow_value`."""
    nullable = null_branch(avro)
    if value is None:
        return value
    inner = nullable[1] if nullable is not None else avro
    name = name_of(inner)
    if name == "map":
        return {key: _avro_value(inner["values"], item) for key, item in value}
    if name == "array":
        return [_avro_value(inner["items"], item) for item in value]
    if name == "record":
        return {
            entry["name"]: _avro_value(entry["type"], value[entry["name"]])
            for entry in inner["fields"]
        }
    return value


def _integral(column: pa.Array) -> pa.Array:
    """Timestamps and dates as the integers `_raw` schemas have in their place."""
    if pa.types.is_timestamp(column.type):
        return column.view(pa.int64())
    if pa.types.is_date32(column.type):
        return column.view(pa.int32())
    return column
