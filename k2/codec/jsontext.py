"""String maps as JSON texts, column by column.

The text of all rows is one gather: a pool of distinct pieces (`{"key":"`, `","key":"`, values,
`"}`) taken in order makes one long string, and the rows are cuts in it. Nothing is joined.
"""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2.codec.sizes import offsets_of

#: What JSON escapes in a string besides control characters: quote and backslash.
_QUOTE: Final = 0x22
_BACKSLASH: Final = 0x5C
_FIRST_PRINTABLE: Final = 0x20


def map_to_json(maps: pa.Array) -> pa.Array:
    """A map<string, string> column as string column of JSON objects; null stays null.

    The texts equal `json.dumps(row, separators=(",", ":"), ensure_ascii=False)`, keys in the order
    of the map.
    """
    rows = len(maps)
    offsets = offsets_of(maps).astype(np.int64)
    first, last = int(offsets[0]), int(offsets[-1])
    names, codes = _names(maps.keys.slice(first, last - first), rows)
    values = bodies(maps.items.slice(first, last - first))
    offsets -= first
    counts = np.diff(offsets)
    pool, heads, rests, ends = _pool(bodies(names), values)
    # Two pieces per entry and one at the end of each row; an empty or null row has only the end.
    cuts = 2 * offsets + np.arange(rows + 1)
    order = np.empty(int(cuts[-1]), np.int64)
    entry_rows = np.repeat(np.arange(rows), counts)
    entry_places = 2 * np.arange(len(codes)) + entry_rows
    starts = offsets[:-1][counts > 0]
    order[entry_places] = codes + rests
    order[entry_places[starts]] = codes[starts] + heads
    order[entry_places + 1] = np.arange(len(codes))
    order[cuts[1:] - 1] = np.where(counts > 0, ends, ends + 1)
    return _cut(pool.take(pa.array(order)), cuts, maps)


def _names(keys: pa.Array, rows: int) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """Distinct keys, and for each entry which one it has."""
    width = len(keys) // rows if rows else 0
    if width and width * rows == len(keys):
        # One source gives each row the same keys: then text and lengths repeat, and comparing them
        # takes a tenth of hashing the keys.
        offsets = offsets_of(keys)
        period = int(offsets[width] - offsets[0])
        raw = np.frombuffer(keys.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
        lengths = np.diff(offsets)
        if np.array_equal(lengths[width:], lengths[:-width]) and np.array_equal(
            raw[period:], raw[: len(raw) - period]
        ):
            return keys[:width], np.tile(np.arange(width), rows)
    encoded = keys.dictionary_encode()
    return encoded.dictionary, encoded.indices.to_numpy().astype(np.int64)


def _pool(keys: pa.Array, values: pa.Array) -> tuple[pa.Array, int, int, int]:
    """All pieces, and where opening keys, further keys and row ends start among them."""
    names = keys.to_pylist()
    heads = pa.array([f'{{"{name}":"' for name in names], pa.string())
    rests = pa.array([f'","{name}":"' for name in names], pa.string())
    pool = pa.concat_arrays([values, heads, rests, pa.array(['"}', "{}", ""])])
    at = len(values)
    return pool, at, at + len(names), at + 2 * len(names)


def bodies(texts: pa.Array) -> pa.Array:
    """The texts as they stand between the quotes of a JSON string."""
    offsets = offsets_of(texts)
    data = texts.buffers()[2]
    if data is None or offsets[-1] == offsets[0]:
        return texts
    raw: npt.NDArray[Any] = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
    if not ((raw == _QUOTE) | (raw == _BACKSLASH)).any() and raw.min() >= _FIRST_PRINTABLE:
        return texts
    encoded = texts.dictionary_encode()
    escaped = [
        json.dumps(text, ensure_ascii=False)[1:-1] for text in encoded.dictionary.to_pylist()
    ]
    return pa.array(escaped, pa.string()).take(encoded.indices)


def _cut(pieces: pa.Array, cuts: npt.NDArray[np.int64], maps: pa.Array) -> pa.Array:
    """One string per row out of the pieces between two cuts."""
    offsets = pa.py_buffer(np.ascontiguousarray(offsets_of(pieces)[cuts]))
    text = pieces.buffers()[2] or pa.py_buffer(b"")
    valid = None
    if maps.null_count:
        valid = pa.array(maps.is_valid().to_numpy(zero_copy_only=False)).buffers()[1]
    return pa.Array.from_buffers(pa.string(), len(maps), [valid, offsets, text])
