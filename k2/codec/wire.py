"""The Confluent wire format: 0x00, a 4-byte big-endian schema id, the Avro body.

The five leading bytes are themselves valid Avro: a boolean (0x00 is false) and a float (four raw
bytes). `with_header` puts two such fields before a record's own, so that the codec reads and writes
whole values in one call instead of cutting or joining five bytes per record in Python.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2.codec.schemas import compact

HEADER: Final = struct.Struct(">bI")
MAGIC: Final = 0
#: Registries hand out positive Java ints.
MAX_SCHEMA_ID: Final = 2**31 - 1


class DecodeReason(StrEnum):
    """Why bytes are not a record. The codes are stored in dead letters: never rename one."""

    #: The record has no value (a tombstone), which a market log does not contain.
    NO_VALUE = "NO_VALUE"
    #: Fewer than the five bytes of the header.
    TOO_SHORT = "TOO_SHORT"
    #: The first byte is not 0x00: not the Confluent wire format (JSON, plain text, …).
    BAD_MAGIC = "BAD_MAGIC"
    #: The registry does not know the schema id.
    UNKNOWN_SCHEMA = "UNKNOWN_SCHEMA"
    #: The schema exists but its records cannot be read as this topic's records.
    WRONG_SCHEMA = "WRONG_SCHEMA"
    #: The body ends early, has invalid UTF-8, an enum index or union branch out of range.
    MALFORMED = "MALFORMED"
    #: A whole record, and bytes after it.
    TRAILING_BYTES = "TRAILING_BYTES"


class Bad(NamedTuple):
    """A value that is not a record: its row, the reason's code and what exactly is wrong."""

    row: int
    reason: str
    detail: str


def header(schema_id: int) -> bytes:
    """The five bytes before each body."""
    return HEADER.pack(MAGIC, schema_id)


def with_header(schema_text: str) -> str:
    """The record schema with the header's bytes as its first two fields."""
    schema = json.loads(schema_text)
    taken = {entry["name"] for entry in schema["fields"]}
    assert not taken & {"wire_magic", "wire_id"}
    schema["fields"] = [
        {"name": "wire_magic", "type": "boolean"},
        {"name": "wire_id", "type": "float"},
        *schema["fields"],
    ]
    return compact(schema)


def header_columns(schema_id: int, rows: int) -> tuple[pa.Array, pa.Array]:
    """The two leading columns for `rows` records: false, and floats whose bytes are the id."""
    ids = np.full(rows, schema_id, ">u4")
    bits = np.zeros((rows + 7) // 8, np.uint8)
    return (
        pa.Array.from_buffers(pa.bool_(), rows, [None, pa.py_buffer(bits)]),
        pa.Array.from_buffers(pa.float32(), rows, [None, pa.py_buffer(ids)]),
    )


def header_mismatches(batch: pa.RecordBatch, schema_id: int) -> npt.NDArray[np.int64]:
    """Rows whose two leading columns are not the header of `schema_id`."""
    magic, ids = batch.column(0), batch.column(1)
    wrong = np.frombuffer(ids.buffers()[1], ">u4", batch.num_rows) != schema_id
    if magic.true_count:
        wrong |= magic.to_numpy(zero_copy_only=False)
    return np.flatnonzero(wrong)


@dataclass(slots=True)
class Sorted:
    """Rows by schema id, and the values without a usable header."""

    rows: dict[int, list[int]] = field(default_factory=dict)
    bad: list[Bad] = field(default_factory=list)


def sort_by_schema(values: Sequence[bytes | None]) -> Sorted:
    """Look at each header; only for batches that are not all of one schema."""
    result = Sorted()
    for index, value in enumerate(values):
        if value is None:
            result.bad.append(Bad(index, DecodeReason.NO_VALUE, "the record has no value"))
        elif len(value) < HEADER.size:
            detail = f"{len(value)} bytes; the header alone takes {HEADER.size}"
            result.bad.append(Bad(index, DecodeReason.TOO_SHORT, detail))
        elif value[0] != MAGIC:
            detail = f"the value starts with byte {value[0]:#04x}, not 0x00: {value[:16]!r}"
            result.bad.append(Bad(index, DecodeReason.BAD_MAGIC, detail))
        else:
            schema_id = int.from_bytes(value[1 : HEADER.size], "big")
            result.rows.setdefault(schema_id, []).append(index)
    return result
