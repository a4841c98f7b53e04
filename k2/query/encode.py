"""Arrow to JSON, exactly.

- decimals (and integers beyond 64 bits): text in plain notation, without trailing zeros and never
  with an exponent (`61837.63`), so that no reader rounds them;
- timestamps: ISO 8601 with six decimals and `Z`; dates, times and intervals (`P1DT2H`) ISO 8601;
  DuckDB's infinite ones are `infinity` and `-infinity`;
- `vendor_data` of records: the object it was;
- floating point (only from SQL expressions): JSON numbers, NaN and infinities null.
"""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import itertools
import uuid
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import orjson
import pyarrow as pa

from k2.decimals import plain

_MAX_INT = 2**63


#: Text columns of the records that hold JSON.
JSON_COLUMNS: Final = frozenset({"vendor_data"})


def rows_of(table: pa.Table, *, parse_json: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """One dict per row, ready for orjson. `parse_json`: text columns that hold JSON.

    Columns of the same name get `_1`, `_2`, …, so that none hides another.
    """
    names = column_names(table)
    columns = [
        [parsed(text) for text in column.to_pylist()] if name in parse_json else _values(column)
        for name, column in zip(table.column_names, table.columns, strict=True)
    ]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def column_types(table: pa.Table) -> list[dict[str, str]]:
    """Name and Arrow type of each column of `rows_of`."""
    names = column_names(table)
    return [
        {"name": name, "type": str(field.type)}
        for name, field in zip(names, table.schema, strict=True)
    ]


def column_names(table: pa.Table) -> list[str]:
    """The names of the columns, each only once."""
    seen: dict[str, int] = {}
    out: list[str] = []
    for name in table.column_names:
        count = seen.get(name, -1) + 1
        while count and f"{name}_{count}" in seen:
            count += 1
        seen[name] = count
        fresh = f"{name}_{count}" if count else name
        seen.setdefault(fresh, 0)
        out.append(fresh)
    return out


def parsed(text: str | None) -> Any:
    """What the JSON says; text that is none stays text."""
    if text is None:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _values(column: pa.ChunkedArray) -> list[Any]:
    return [value for chunk in column.chunks for value in values_of(chunk)]


def values_of(array: pa.Array) -> list[Any]:
    """Values for orjson. By type, not by value: Python has no date after 9999 nor endless ones."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return values_of(array.dictionary_decode())
    for test, convert in _BY_TYPE:
        if test(kind):
            return convert(array)
    return [_any(value) for value in array.to_pylist()]


def _plain_values(array: pa.Array) -> list[Any]:
    return list(array.to_pylist())


def _decimals(array: pa.Array) -> list[Any]:
    return [None if value is None else plain(value) for value in array.to_pylist()]


def _timestamps(array: pa.Array) -> list[Any]:
    zone = "Z" if array.type.tz else ""
    micros = array.cast(pa.timestamp("us", array.type.tz), safe=False).cast(pa.int64()).to_pylist()
    return [None if us is None else _iso(us, zone) for us in micros]


def _dates(array: pa.Array) -> list[Any]:
    days = array.cast(pa.date32()).cast(pa.int32()).to_pylist()
    return [None if day is None else _date(day) for day in days]


def _intervals(array: pa.Array) -> list[Any]:
    return [None if value is None else duration(*value) for value in array.to_pylist()]


def _lists(array: pa.Array) -> list[Any]:
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.list_(array.type.value_type))
    return _spread(array, lambda first, count: values_of(array.values.slice(first, count)))


def _maps(array: pa.Array) -> list[Any]:
    def pairs(first: int, count: int) -> list[Any]:
        keys, items = (values_of(part.slice(first, count)) for part in (array.keys, array.items))
        return [list(pair) for pair in zip(keys, items, strict=True)]

    return _spread(array, pairs)


def _spread(array: pa.Array, elements: Callable[[int, int], list[Any]]) -> list[Any]:
    """The elements of all lists at once, cut at the lists' offsets."""
    if not len(array):
        return []
    offsets = array.offsets.to_pylist()
    base = offsets[0]
    flat = elements(base, offsets[-1] - base)
    ranges = itertools.pairwise(offsets)
    return [
        flat[first - base : last - base] if valid else None
        for (first, last), valid in zip(ranges, array.is_valid().to_pylist(), strict=True)
    ]


def _structs(array: pa.Array) -> list[Any]:
    names = [field.name for field in array.type]
    rows = zip(*(values_of(part) for part in array.flatten()), strict=True)
    return [
        dict(zip(names, row, strict=True)) if valid else None
        for row, valid in zip(rows, array.is_valid().to_pylist(), strict=True)
    ]


_BY_TYPE: Final[tuple[tuple[Callable[[Any], bool], Callable[[Any], list[Any]]], ...]] = (
    (pa.types.is_timestamp, _timestamps),
    (pa.types.is_decimal, _decimals),
    (pa.types.is_string, _plain_values),
    (pa.types.is_boolean, _plain_values),
    (pa.types.is_floating, _plain_values),
    (pa.types.is_date, _dates),
    (pa.types.is_interval, _intervals),
    (pa.types.is_map, _maps),
    (pa.types.is_list, _lists),
    (pa.types.is_large_list, _lists),
    (pa.types.is_fixed_size_list, _lists),
    (pa.types.is_struct, _structs),
)

_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001  the zone is written by hand
#: DuckDB's infinite dates and timestamps: the largest value of their type, and its opposite.
_ENDLESS_DAYS: Final = 2**31 - 1
_ENDLESS_US: Final = 2**63 - 1


def _iso(us: int, zone: str) -> str:
    if abs(us) == _ENDLESS_US:
        return "infinity" if us > 0 else "-infinity"
    try:
        moment = _EPOCH + dt.timedelta(microseconds=us)
    except OverflowError:
        return str(np.datetime64(us, "us")) + zone
    return moment.isoformat(timespec="microseconds") + zone


def _date(days: int) -> str:
    if abs(days) == _ENDLESS_DAYS:
        return "infinity" if days > 0 else "-infinity"
    return str(np.datetime64(days, "D"))


def duration(months: int, days: int, nanoseconds: int) -> str:
    """ISO 8601: `P1Y2M3DT4H5M6.5S`. Each part has its own sign, as intervals do."""
    years, months = _divided(months, 12)
    seconds, fraction = _divided(nanoseconds, 1_000_000_000)
    minutes, seconds = _divided(seconds, 60)
    hours, minutes = _divided(minutes, 60)
    part = decimal.Decimal(seconds) + decimal.Decimal(fraction).scaleb(-9)
    date = "".join(f"{n}{unit}" for n, unit in ((years, "Y"), (months, "M"), (days, "D")) if n)
    time = "".join(f"{n}{unit}" for n, unit in ((hours, "H"), (minutes, "M")) if n)
    time += f"{plain(part)}S" if part else ""
    if not date and not time:
        return "PT0S"
    return f"P{date}T{time}" if time else f"P{date}"


def _divided(value: int, by: int) -> tuple[int, int]:
    """Quotient and remainder with the sign of `value`."""
    quotient, rest = divmod(abs(value), by)
    return (quotient, rest) if value >= 0 else (-quotient, -rest)


def _any(value: Any) -> Any:
    convert = _CONVERT.get(type(value))
    return convert(value) if convert else _other(value)


def _datetime(value: dt.datetime) -> str:
    text = value.replace(tzinfo=None).isoformat(timespec="microseconds")
    return text + "Z" if value.tzinfo else text


def _integer(value: int) -> int | str:
    return value if -_MAX_INT <= value < _MAX_INT else str(value)


def _other(value: Any) -> Any:
    return str(value)


_CONVERT: dict[type, Callable[[Any], Any]] = {
    type(None): lambda value: value,
    bool: lambda value: value,
    str: lambda value: value,
    float: lambda value: value,
    int: _integer,
    decimal.Decimal: plain,
    dt.datetime: _datetime,
    dt.date: lambda value: value.isoformat(),
    dt.time: lambda value: value.isoformat(),
    bytes: lambda value: base64.b64encode(value).decode(),
    uuid.UUID: str,
    list: lambda value: [_any(item) for item in value],
    tuple: lambda value: [_any(item) for item in value],
    dict: lambda value: {str(key): _any(item) for key, item in value.items()},
}
