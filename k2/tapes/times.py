"""Times of tapes to microseconds UTC; what is none is found row by row."""

from __future__ import annotations

import datetime as dt
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from k2.errors import TapeError
from k2.times import micros

_US: Final = pa.timestamp("us")
_UTC: Final = pa.timestamp("us", tz="UTC")

Micros = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def zone(name: str) -> ZoneInfo:
    """The time zone of that name. Raises `TapeError`."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise TapeError(
            f"time zone {name!r} is unknown; give a name of the tz database, e.g. UTC or "
            "Australia/Sydney",
            timezone=name,
        ) from exc


def joined(dates: pa.Array, times: pa.Array) -> pa.Array:
    """MM/DD/YYYY and a time of day as ISO text."""
    parts = [pc.utf8_slice_codeunits(dates, a, b) for a, b in ((6, 10), (0, 2), (3, 5))]
    days = pc.binary_join_element_wise(*parts, "-")
    return pc.binary_join_element_wise(days, times, " ")


def to_micros(texts: pa.Array, tz: ZoneInfo) -> tuple[Micros, Mask]:
    """(microseconds UTC, which rows are good). Text without an offset is local time in `tz`.

    A local time that a change of clocks left out is no time; of one that came twice the first.
    """
    try:
        return _all(texts, tz), np.ones(len(texts), np.bool_)
    except pa.ArrowInvalid:
        return _one_by_one(texts, tz)


def _all(texts: pa.Array, tz: ZoneInfo) -> Micros:
    if len(texts) and _names_offset(texts[0].as_py() or ""):
        stamps = texts.cast(_UTC)
    else:
        local = texts.cast(_US)
        stamps = pc.assume_timezone(local, tz.key, ambiguous="earliest", nonexistent="raise")
    micros: Micros = stamps.cast(pa.int64()).to_numpy()
    return micros


def _names_offset(text: str) -> bool:
    return text.endswith("Z") or "+" in text or text.rfind("-") > 10


def _one_by_one(texts: pa.Array, tz: ZoneInfo) -> tuple[Micros, Mask]:
    found, good = np.zeros(len(texts), np.int64), np.zeros(len(texts), np.bool_)
    for row, text in enumerate(texts.to_pylist()):
        try:
            time = dt.datetime.fromisoformat(text or "")
        except ValueError:
            continue
        if time.tzinfo is None:
            time = time.replace(tzinfo=tz)
            # A time the clocks left out comes back as another one.
            if time.astimezone(dt.UTC).astimezone(tz).replace(tzinfo=tz) != time:
                continue
        found[row] = micros(time)
        good[row] = True
    return found, good
