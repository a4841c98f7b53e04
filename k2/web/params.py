"""Request parameters to values, or an error that names the parameter and what is allowed."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Collection, Mapping

from multidict import MultiMapping

from k2.errors import InvalidParameter

_NAME = re.compile(r"[A-Z0-9][A-Z0-9._/-]{0,31}")
_DIGITS = re.compile(r"-?[0-9]{1,18}")
#: `+` in a URL means a space: 2024-08-08T10:00:00+02:00 arrives with one before its offset.
_LOST_PLUS = re.compile(r"(?<=[0-9]) (?=[0-9]{2}:?[0-9]{2}$)")
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
#: Whole numbers from here on are µs, below it ms (as µs: 1973, as ms: the year 5138).
_MICROS_FROM = 10**14
#: Smaller ones would be ms before March 1973; whoever sends them means seconds.
_MILLIS_FROM = 10**11

_TIME_ALLOWED = (
    "ISO 8601 (2024-08-08T23:54:00Z; without an offset UTC) or milliseconds or microseconds "
    "since 1970 (12 digits or more; seconds are not taken)"
)


def known(query: MultiMapping[str], allowed: Collection[str]) -> dict[str, str]:
    """The parameters by name. Raises `InvalidParameter` for unknown, repeated and empty ones."""
    values: dict[str, str] = {}
    for name, value in query.items():
        if name not in allowed:
            raise InvalidParameter(name, value, f"the parameters {', '.join(allowed)}")
        if name in values:
            raise InvalidParameter(name, value, "one value per parameter")
        if not value:
            raise InvalidParameter(name, value, "a value; leave the parameter out instead")
        values[name] = value
    return values


def name_of(values: Mapping[str, str], parameter: str) -> str | None:
    """A symbol or exchange, upper case."""
    text = values.get(parameter)
    if text is None:
        return None
    upper = text.upper()
    if not text.isascii() or not _NAME.fullmatch(upper):
        raise InvalidParameter(parameter, text, "1 to 32 letters, digits or . _ / -")
    return upper


def integer(
    values: Mapping[str, object], parameter: str, *, default: int, low: int, high: int
) -> int:
    """A whole number within `low`..`high`."""
    value = values.get(parameter, default)
    allowed = f"a whole number from {low} to {high}"
    if isinstance(value, str):
        if not _DIGITS.fullmatch(value):
            raise InvalidParameter(parameter, value, allowed)
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidParameter(parameter, value, allowed)
    return value


def time_us(values: Mapping[str, str], parameter: str) -> int | None:
    """A time in microseconds since 1970 UTC."""
    text = values.get(parameter)
    if text is None:
        return None
    if _DIGITS.fullmatch(text):
        number = int(text)
        if 0 < abs(number) < _MILLIS_FROM:
            raise InvalidParameter(parameter, text, _TIME_ALLOWED)
        us = number if abs(number) >= _MICROS_FROM else number * 1_000
    else:
        us = _iso_us(parameter, text)
    # DuckDB and Python agree on the years 1 to 9999.
    if not -62_135_596_800_000_000 <= us < 253_402_300_800_000_000:
        raise InvalidParameter(parameter, text, "a time within the years 1 to 9999")
    return us


def _iso_us(parameter: str, text: str) -> int:
    try:
        moment = dt.datetime.fromisoformat(_LOST_PLUS.sub("+", text))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=dt.UTC)
        return (moment - _EPOCH) // dt.timedelta(microseconds=1)
    except (ValueError, OverflowError) as exc:
        raise InvalidParameter(parameter, text, _TIME_ALLOWED) from exc


def period(values: Mapping[str, str]) -> tuple[int | None, int | None]:
    """`start_time` (inclusive) and `end_time` (exclusive)."""
    start, end = time_us(values, "start_time"), time_us(values, "end_time")
    if start is not None and end is not None and start >= end:
        raise InvalidParameter("start_time", values["start_time"], "a time before end_time")
    return start, end


def fields(values: Mapping[str, str], allowed: Collection[str]) -> list[str] | None:
    """Column names, comma separated."""
    text = values.get("fields")
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    wrong = next((name for name in names if name not in allowed), None)
    if wrong is not None:
        raise InvalidParameter("fields", wrong, ", ".join(allowed))
    return list(dict.fromkeys(names))
