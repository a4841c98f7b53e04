"""Types of request parameters: from text or JSON to values, and what the documentation says."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema

from k2.errors import InvalidParameter
from k2.times import TIME_ALLOWED, time_us

_NAME: Final = re.compile(r"[A-Z0-9][A-Z0-9._/-]{0,31}")
_NAME_ALLOWED: Final = "1 to 32 letters, digits or . _ / -"
_DIGITS: Final = re.compile(r"-?[0-9]{1,18}")
_NAME_SCHEMA: Final[dict[str, Any]] = {
    "type": "string",
    "pattern": "^[A-Za-z0-9][A-Za-z0-9._/-]{0,31}$",
}
#: As many digits as the lake's decimals have.
_MAX_DECIMAL: Final = Decimal(10) ** 18


class Request(BaseModel):
    """Base of all request models: nothing unknown, nothing changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


def _checked(convert: Callable[[Any], Any], allowed: str) -> BeforeValidator:
    """A conversion whose failure names the parameter, its value and what is allowed."""

    def validate(value: Any, info: ValidationInfo) -> Any:
        try:
            return None if value is None else convert(value)
        except (ValueError, TypeError, InvalidOperation) as exc:
            raise InvalidParameter(str(info.field_name), value, allowed) from exc

    return BeforeValidator(validate)


def _name(value: Any) -> str:
    upper = str(value).upper()
    if not isinstance(value, str) or not value.isascii() or not _NAME.fullmatch(upper):
        raise ValueError(value)
    return upper


def _names(value: Any) -> frozenset[str]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple | set | frozenset) or not 1 <= len(parts) <= 100:
        raise TypeError(value)
    return frozenset(_name(part.strip() if isinstance(part, str) else part) for part in parts)


def _time(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(value)
    return time_us(str(value))


def whole_number(value: Any) -> int:
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(value)
    return value


def _decimal(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, str | int):
        # A JSON number with a fraction has been rounded already.
        raise TypeError(value)
    number = Decimal(value)
    if not number.is_finite() or abs(number) >= _MAX_DECIMAL or number != round(number, 10):
        raise ValueError(value)
    return number


def _columns(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or not parts or not all(isinstance(p, str) for p in parts):
        raise TypeError(value)
    return tuple(dict.fromkeys(part.strip() for part in parts))


def _snapshot(value: Any) -> int:
    number = int(value) if isinstance(value, str) and _DIGITS_ID.fullmatch(value) else value
    if isinstance(number, bool) or not isinstance(number, int) or not 0 < number < 2**63:
        raise TypeError(value)
    return number


_DIGITS_ID: Final = re.compile(r"[0-9]{1,19}")

Name = Annotated[str, _checked(_name, _NAME_ALLOWED), WithJsonSchema(_NAME_SCHEMA)]
Names = Annotated[
    frozenset[str],
    _checked(_names, f"1 to 100 names, comma separated or a list, each {_NAME_ALLOWED}"),
    WithJsonSchema({"type": "array", "items": _NAME_SCHEMA, "minItems": 1, "maxItems": 100}),
]
TimeUs = Annotated[
    int,
    _checked(_time, TIME_ALLOWED),
    WithJsonSchema(
        {
            "type": "string",
            "format": "date-time",
            "examples": ["2024-08-08T23:54:00Z"],
            "description": "ISO 8601, or milliseconds or microseconds since 1970",
        }
    ),
]
Exact = Annotated[
    Decimal,
    _checked(_decimal, "decimal text with up to 18 digits before and 10 after the point"),
    WithJsonSchema({"type": "string", "pattern": r"^-?[0-9]{1,18}(\.[0-9]{1,10})?$"}),
]
Columns = Annotated[
    tuple[str, ...],
    _checked(_columns, "column names, comma separated or a list"),
    WithJsonSchema({"type": "array", "items": {"type": "string"}, "minItems": 1}),
]
SnapshotId = Annotated[
    int,
    _checked(_snapshot, "a snapshot id of /v1/snapshots, as text"),
    WithJsonSchema({"type": "string", "pattern": "^[1-9][0-9]{0,17}$"}),
]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError(value)
    return value


SqlText = Annotated[
    str, _checked(_text, "one SELECT statement"), WithJsonSchema({"type": "string", "minLength": 1})
]


def whole(low: int, high: int, meaning: str = "") -> Any:
    """The type of a whole number within `low`..`high`."""

    def convert(value: Any) -> int:
        number = whole_number(value)
        if not low <= number <= high:
            raise ValueError(value)
        return number

    return Annotated[
        int,
        _checked(convert, f"a whole number from {low} to {high}"),
        WithJsonSchema({"type": "integer", "minimum": low, "maximum": high}),
        Field(description=meaning or None),
    ]
