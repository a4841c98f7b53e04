"""What pyruhvro does not check: how long each row's encoding is, and its text.

pyruhvro stops after the last field and does not look whether bytes are left. No encoding is
shorter than the one `row_sizes` counts, so a value that is longer has trailing bytes, or an unusual
writer (blocks with sizes, padded integers): fastavro, which says how far it read, settles which.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2.codec.types import name_of, null_branch

Sizes = npt.NDArray[np.int64]

#: Smallest zigzag value that needs 2, 3, … 10 bytes.
_STEPS: Final = np.array([1 << shift for shift in range(7, 64, 7)], np.uint64)
_FIXED: Final = {"boolean": 1, "float": 4, "double": 8, "enum": 1}


def row_sizes(fields: list[dict[str, Any]], batch: pa.RecordBatch) -> Sizes:
    """int64 bytes per row; `fields` are the record's Avro fields, in the batch's order."""
    total = np.zeros(batch.num_rows, np.int64)
    if not batch.num_rows:
        return total
    for field, column in zip(fields, batch.columns, strict=True):
        total += _sizes(field["type"], column)
    return total


def _sizes(avro: Any, array: pa.Array) -> Any:
    """Bytes per element, or one number when they all take the same."""
    nullable = null_branch(avro)
    if nullable is not None:
        if array.null_count == len(array):
            return 1
        inner = _sizes(nullable[1], array)
        if array.null_count == 0:
            return inner + 1
        return np.where(array.is_valid().to_numpy(zero_copy_only=False), inner, 0) + 1
    name = name_of(avro)
    return _FIXED[name] if name in _FIXED else _MEASURE[name](avro, array)


def _number(avro: Any, array: pa.Array) -> Any:
    width = np.int32 if name_of(avro) == "int" else np.int64
    values = np.frombuffer(array.buffers()[1], width, len(array) + array.offset)
    return _varints(values[array.offset :].astype(np.int64, copy=False))


def _string(_avro: Any, array: pa.Array) -> Any:
    lengths = np.diff(offsets_of(array)).astype(np.int64)
    return lengths + _counts(lengths)


def _record(avro: Any, array: pa.Array) -> Any:
    return sum(_sizes(field["type"], array.field(i)) for i, field in enumerate(avro["fields"]))


def _array(avro: Any, array: pa.Array) -> Any:
    return _blocks(offsets_of(array), [(avro["items"], array.values)])


def _map(avro: Any, array: pa.Array) -> Any:
    return _blocks(offsets_of(array), [("string", array.keys), (avro["values"], array.items)])


_MEASURE: Final[dict[str, Callable[[Any, pa.Array], Any]]] = {
    "int": _number,
    "long": _number,
    "string": _string,
    "record": _record,
    "array": _array,
    "map": _map,
}


def offsets_of(array: pa.Array) -> npt.NDArray[np.int32]:
    """The `len + 1` int32 offsets of a string, list or map array, slices included."""
    if len(array) == 0:
        return np.zeros(1, np.int32)
    raw = np.frombuffer(array.buffers()[1], np.int32, len(array) + array.offset + 1)
    return raw[array.offset :]


def non_ascii_rows(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Rows with a byte above 0x7f in any string, nested ones too: the only ones UTF-8 can break."""
    return np.unique(np.concatenate([_non_ascii(column) for column in batch.columns]))


def _non_ascii(array: pa.Array) -> npt.NDArray[np.int64]:
    kind = array.type
    if pa.types.is_struct(kind):
        parts = [_non_ascii(array.field(index)) for index in range(kind.num_fields)]
        return np.concatenate(parts)
    if pa.types.is_string(kind):
        raw = np.frombuffer(array.buffers()[2] or b"", np.uint8)
        marks = np.flatnonzero(raw > 0x7F)
    elif pa.types.is_map(kind):
        marks = np.concatenate([_non_ascii(array.keys), _non_ascii(array.items)])
    elif pa.types.is_list(kind):
        marks = _non_ascii(array.values)
    else:
        return np.empty(0, np.int64)
    rows = np.searchsorted(offsets_of(array), marks, side="right") - 1
    return rows[(rows >= 0) & (rows < len(array))]


def _varints(values: npt.NDArray[np.int64]) -> Any:
    """Bytes of each value as a zigzag varint."""
    if not len(values):
        return 0
    # Timestamps of one batch all take 8 bytes: the extremes say so without a pass per value.
    least, most = values.min(), values.max()
    if least >= 0 and _one(least) == _one(most):
        return _one(least)
    zigzag = ((values << 1) ^ (values >> 63)).view(np.uint64)
    return np.searchsorted(_STEPS, zigzag, side="right") + 1


def _one(value: np.int64) -> int:
    return ((2 * int(value)).bit_length() + 6) // 7 or 1


def _counts(lengths: Sizes) -> Any:
    """Bytes of lengths and counts, which are hardly ever above 63."""
    if not len(lengths) or lengths.max() < 64:
        return 1
    return _varints(lengths)


def _blocks(offsets: npt.NDArray[np.int32], children: list[tuple[Any, pa.Array]]) -> Any:
    counts = np.diff(offsets).astype(np.int64)
    if not counts.any():
        return 1
    items: Any = sum(_sizes(avro, values) for avro, values in children)
    sums = np.zeros(len(children[0][1]) + 1, np.int64)
    np.cumsum(np.broadcast_to(items, len(sums) - 1), out=sums[1:])
    body = sums[offsets[1:]] - sums[offsets[:-1]]
    return body + np.where(counts > 0, _counts(counts), 0) + 1
