"""Arrow to JSON, exactly.

- decimals (and integers beyond 64 bits): text in plain notation, without trailing zeros and never
  with an exponent (`61837.63`), so that no reader rounds them;
- timestamps: ISO 8601 with six decimals and `Z`; dates and times ISO 8601;
- `vendor_data` of records: the object it was;
- floating point (only from SQL expressions): JSON numbers, NaN and infinities null.
"""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import uuid
from collections.abc import Callable
from typing import Any

import orjson
import pyarrow as pa

_MAX_INT = 2**63


def plain(value: decimal.Decimal) -> str:
    """Decimal text without trailing zeros or exponent."""
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def rows_of(table: pa.Table, *, parse_json: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """One dict per row, ready for orjson. `parse_json`: text columns that hold JSON.

    Columns of the same name get `_1`, `_2`, …, so that none hides another.
    """
    names = _unique(table.column_names)
    columns = [
        [_parsed(text) for text in column.to_pylist()] if name in parse_json else _values(column)
        for name, column in zip(table.column_names, table.columns, strict=True)
    ]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def column_types(table: pa.Table) -> list[dict[str, str]]:
    """Name and Arrow type of each column of `rows_of`."""
    names = _unique(table.column_names)
    return [
        {"name": name, "type": str(field.type)}
        for name, field in zip(names, table.schema, strict=True)
    ]


def _unique(names: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    out: list[str] = []
    for name in names:
        count = seen.get(name, -1) + 1
        while count and f"{name}_{count}" in seen:
            count += 1
        seen[name] = count
        fresh = f"{name}_{count}" if count else name
        seen.setdefault(fresh, 0)
        out.append(fresh)
    return out


def _parsed(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _values(column: pa.ChunkedArray) -> list[Any]:
    kind = column.type
    if pa.types.is_timestamp(kind):
        return [None if us is None else _iso(us, kind) for us in _micros(column, kind)]
    values = column.to_pylist()
    if pa.types.is_string(kind) or pa.types.is_boolean(kind) or pa.types.is_floating(kind):
        return list(values)
    if pa.types.is_decimal(kind):
        return [None if value is None else plain(value) for value in values]
    return [_any(value) for value in values]


def _micros(column: pa.ChunkedArray, kind: pa.TimestampType) -> list[int | None]:
    micros = column.cast(pa.timestamp("us", kind.tz), safe=False)
    values: list[int | None] = micros.cast(pa.int64()).to_pylist()
    return values


_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001  the zone is written by hand


def _iso(us: int, kind: pa.TimestampType) -> str | int:
    try:
        moment = _EPOCH + dt.timedelta(microseconds=us)
    except OverflowError:
        return us
    return moment.isoformat(timespec="microseconds") + ("Z" if kind.tz else "")


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
