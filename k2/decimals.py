"""Decimal columns: decimal(28,10) from text and to text, exactly; never floats."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from k2.codec.sizes import offsets_of
from k2.errors import DecodeError

DECIMAL: Final = pa.decimal128(28, 10)

#: Longest text without exponent that Arrow's cast is trusted with. Beyond, it may wrap around
#: without a word: 129 nines become -1, 8e-49 becomes 0, and others a price that looks sound.
_TRUSTED_CHARS: Final = 48


def to_decimal(column: pa.Array, name: str) -> pa.Array:
    """Decimal text as decimal(28,10), exactly. Raises `DecodeError` naming the column."""
    try:
        values = column.cast(DECIMAL)
    except pa.ArrowInvalid as exc:
        raise DecodeError(
            f"column {name!r} holds text that is not a decimal(28,10): {exc}", column=name
        ) from exc
    for row in _doubtful(column):
        text = column[row].as_py()
        if Decimal(text) != values[row].as_py():
            raise DecodeError(
                f"column {name!r} holds text that is not a decimal(28,10): {text[:64]!r}",
                column=name,
            )
    return values


def _doubtful(text: pa.Array) -> list[int]:
    """Rows whose text is long or has an exponent; none in any batch of a sane feed."""
    offsets = offsets_of(text)
    raw = text.buffers()[2]
    if not len(text) or raw is None:
        return []
    used = np.frombuffer(raw, np.uint8, int(offsets[-1] - offsets[0]), int(offsets[0]))
    doubtful = np.diff(offsets) > _TRUSTED_CHARS
    # Digits, point and signs are below every letter: one look at the bytes tells.
    if used.size and used.max() > ord("9"):
        letters = pc.match_substring(text, "e", ignore_case=True)
        doubtful |= letters.to_numpy(zero_copy_only=False)
    rows: list[int] = np.flatnonzero(doubtful).tolist()
    return rows


def plain(value: Decimal) -> str:
    """Decimal text without trailing zeros or exponent."""
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def decimal_words(values: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """High and low half of each decimal128, which must not be null: comparing them takes a tenth
    of what a call of Arrow's comparison costs for a small batch."""
    if not len(values):
        return np.empty(0, np.int64), np.empty(0, np.uint64)
    raw = np.frombuffer(values.buffers()[1], np.int64, 2 * len(values), 16 * values.offset)
    pairs = raw.reshape(-1, 2)
    return pairs[:, 1], pairs[:, 0].view(np.uint64)
