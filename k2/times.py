"""Times as people write them, to microseconds since 1970 UTC."""

from __future__ import annotations

import datetime as dt
import re
from typing import Final

_DIGITS: Final = re.compile(r"-?[0-9]{1,18}")
#: `+` in a URL means a space: 2024-08-08T10:00:00+02:00 arrives with one before its offset.
_LOST_PLUS: Final = re.compile(r"(?<=[0-9]) (?=[0-9]{2}:?[0-9]{2}$)")
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_US: Final = dt.timedelta(microseconds=1)
DAY_US: Final = 86_400_000_000
#: Whole numbers from here on are µs, below it ms (as µs: 1973, as ms: the year 5138).
_MICROS_FROM: Final = 10**14
#: Smaller ones would be ms before March 1973; whoever sends them means seconds.
_MILLIS_FROM: Final = 10**11
#: DuckDB and Python agree on the years 1 to 9999.
_FIRST_US: Final = -62_135_596_800_000_000
_LAST_US: Final = 253_402_300_800_000_000

TIME_ALLOWED: Final = (
    "ISO 8601 (2024-08-08T23:54:00Z; without an offset UTC) or milliseconds or microseconds "
    "since 1970 (12 digits or more; seconds are not taken), within the years 1 to 9999"
)


def micros(moment: dt.datetime) -> int:
    """Microseconds of a time that has a zone; exact."""
    return (moment - _EPOCH) // _US


def time_us(text: str) -> int:
    """Microseconds of ISO 8601 text or of whole ms or µs. Raises `ValueError`."""
    us = _number_us(text) if _DIGITS.fullmatch(text) else _iso_us(text)
    if not _FIRST_US <= us < _LAST_US:
        raise ValueError(TIME_ALLOWED)
    return us


def _number_us(text: str) -> int:
    number = int(text)
    if 0 < abs(number) < _MILLIS_FROM:
        raise ValueError(TIME_ALLOWED)
    return number if abs(number) >= _MICROS_FROM else number * 1_000


def _iso_us(text: str) -> int:
    try:
        moment = dt.datetime.fromisoformat(_LOST_PLUS.sub("+", text))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=dt.UTC)
        return micros(moment)
    except OverflowError as exc:
        raise ValueError(TIME_ALLOWED) from exc


def iso_us(us: int) -> str:
    """ISO 8601 with microseconds and `Z`."""
    moment = _EPOCH + dt.timedelta(microseconds=us)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
