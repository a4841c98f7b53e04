"""Rules: which decoded records may enter the lake, and the reason for each that may not.

Pure and columnar. A record breaks a rule when storing it would falsify the data; what is merely
unusual (crossed, locked or one-sided quotes, clocks seconds apart) is let through and counted. A
record is refused for the first rule it breaks, in the order of `Reason`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from k2.codec.sizes import offsets_of
from k2.decimals import decimal_words, to_decimal
from k2.errors import DecodeError
from k2.records import DECIMALS, ID_COLUMN, QUOTE_CONDITIONS, quote_flags
from k2.times import DAY_US

Mask = npt.NDArray[np.bool_]

_US_PER_S: Final = 1_000_000
#: Longest symbol: option symbols of the OCC have 21 characters.
MAX_SYMBOL: Final = 32
_SYMBOL: Final = f"^[A-Z0-9]{{1,{MAX_SYMBOL}}}$"
_is_symbol: Final = re.compile(_SYMBOL).fullmatch


class Reason(StrEnum):
    """Why a decoded record is refused. The codes are stored in dead letters: never rename one."""

    #: The symbol is empty.
    SYMBOL_MISSING = "SYMBOL_MISSING"
    #: The symbol is not 1 to 32 upper-case letters and digits.
    SYMBOL_INVALID = "SYMBOL_INVALID"
    #: trade_id or quote_id is empty: the record could neither be deduplicated nor found again.
    ID_MISSING = "ID_MISSING"
    #: The exchange's time is later than ours by more than `max_future_s`, or older than
    #: `max_age_days`. Exchange clocks run seconds ahead of ours: the limit is minutes, not zero.
    TIMESTAMP_OUT_OF_RANGE = "TIMESTAMP_OUT_OF_RANGE"
    #: A price or quantity is not decimal text, or not exactly a decimal(28,10): more than 18
    #: integer digits, a digit other than 0 after the tenth decimal, NaN, infinity. An exponent
    #: (1E-8) is exact and allowed.
    BAD_DECIMAL = "BAD_DECIMAL"
    #: A trade's price is zero or negative.
    PRICE_NOT_POSITIVE = "PRICE_NOT_POSITIVE"
    #: A trade's quantity is zero or negative.
    QUANTITY_NOT_POSITIVE = "QUANTITY_NOT_POSITIVE"
    #: A quote's price or quantity is negative. Zero is allowed: that side is empty.
    BID_ASK_NEGATIVE = "BID_ASK_NEGATIVE"


class Limits(Protocol):
    """What the rules need of `k2.settings.Validate`."""

    @property
    def max_future_s(self) -> float: ...

    @property
    def max_age_days(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Ages:
    """Limits as plain values."""

    max_future_s: float
    max_age_days: float


class Refused(NamedTuple):
    """A refused row: its index, the reason's code and what exactly is wrong."""

    row: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """`ok`: per row, True when it may pass; `reasons`: one entry per other row, rows rising.

    `flags`: int8 per row as of `k2.records.quote_flags`; None when they are no quotes.
    """

    ok: Mask
    reasons: list[Refused] = field(default_factory=list)
    flags: npt.NDArray[np.int8] | None = None

    @property
    def flagged(self) -> Mapping[str, int]:
        """How many passing quotes are CROSSED, LOCKED or ONE_SIDED (all keys for quotes)."""
        if self.flags is None:
            return {}
        counts = np.bincount(self.flags[self.ok], minlength=1 + len(QUOTE_CONDITIONS)).tolist()
        return dict(zip(QUOTE_CONDITIONS, counts[1:], strict=True))


class _Finding(NamedTuple):
    reason: Reason
    rows: Mask
    detail: Callable[[int], str]


def check(kind: str, batch: pa.RecordBatch, limits: Limits) -> Verdict:
    """Judge decoded trades, aggregated or not, or quotes (`k2.records.WIRE_TRADES`, …)."""
    ok = np.ones(batch.num_rows, np.bool_)
    if not batch.num_rows:
        return Verdict(ok)
    reasons: list[Refused] = []
    decimals = {name: _decimal(batch.column(name), name) for name in DECIMALS[kind]}
    for finding in _findings(kind, batch, limits, decimals):
        rows = np.flatnonzero(finding.rows & ok).tolist()
        reasons += [Refused(row, finding.reason, finding.detail(row)) for row in rows]
        ok &= ~finding.rows
    flags = None
    if kind == "quotes":
        flags = quote_flags(decimals["bid_price"].values, decimals["ask_price"].values)
    return Verdict(ok, sorted(reasons), flags)


def _findings(
    kind: str, batch: pa.RecordBatch, limits: Limits, decimals: Mapping[str, _Decimal]
) -> Iterator[_Finding]:
    """What is wrong with any row, rule by rule; nothing for a sound batch."""
    yield from _symbols(batch.column("symbol"))
    yield from _ids(batch.column(ID_COLUMN[kind]), ID_COLUMN[kind])
    yield from _clocks(batch, limits)
    for decimal in decimals.values():
        yield from decimal.unreadable()
    if "price" in decimals:
        yield from decimals["price"].not_positive(Reason.PRICE_NOT_POSITIVE)
        yield from decimals["quantity"].not_positive(Reason.QUANTITY_NOT_POSITIVE)
    else:
        for decimal in decimals.values():
            yield from decimal.negative()


def _symbols(symbols: pa.Array) -> Iterator[_Finding]:
    # A batch has few distinct symbols, the same as the batch before: judge those, not the rows.
    distinct = symbols.unique()
    if all(map(_is_symbol, distinct.to_pylist())):
        return
    empty = _lengths(symbols) == 0
    invalid = ~_mask(pc.match_substring_regex(symbols, _SYMBOL)) & ~empty
    allowed = f"allowed: 1 to {MAX_SYMBOL} upper-case letters and digits"
    yield _Finding(Reason.SYMBOL_MISSING, empty, lambda _row: f"symbol is empty; {allowed}")
    yield _Finding(
        Reason.SYMBOL_INVALID,
        invalid,
        lambda row: f"symbol is {symbols[row].as_py()[:64]!r}; {allowed}",
    )


def _ids(ids: pa.Array, name: str) -> Iterator[_Finding]:
    lengths = _lengths(ids)
    if not lengths.all():
        yield _Finding(Reason.ID_MISSING, lengths == 0, lambda _row: f"{name} is empty")


def _clocks(batch: pa.RecordBatch, limits: Limits) -> Iterator[_Finding]:
    """Exchange time against the receive time, which for replayed captures is the replay's now."""
    exchange, receive = _micros(batch, "timestamp"), _micros(batch, "receive_timestamp")
    future, age = limits.max_future_s * _US_PER_S, limits.max_age_days * DAY_US
    ahead = exchange - receive
    if ahead.max() <= future and ahead.min() >= -age and _far_from_overflow(exchange, receive):
        return
    # In floats: the difference of two far ends does not fit int64.
    exact = exchange.astype(np.float64) - receive.astype(np.float64)

    def detail(row: int) -> str:
        return (
            f"timestamp is {exact[row] / _US_PER_S:+.3f} s from receive_timestamp "
            f"({exchange[row]} and {receive[row]} µs); allowed: -{limits.max_age_days} days "
            f"to +{limits.max_future_s} s"
        )

    yield _Finding(Reason.TIMESTAMP_OUT_OF_RANGE, (exact > future) | (exact < -age), detail)


def _far_from_overflow(*columns: npt.NDArray[np.int64]) -> bool:
    return all(column.min() > -(2**62) and column.max() < 2**62 for column in columns)


def _micros(batch: pa.RecordBatch, name: str) -> npt.NDArray[np.int64]:
    micros: npt.NDArray[np.int64] = batch.column(name).view(pa.int64()).to_numpy()
    return micros


@dataclass(frozen=True, slots=True)
class _Decimal:
    """A decimal column: its text, its values (0 where unreadable) and which rows are unreadable."""

    name: str
    text: pa.Array
    values: pa.Array
    bad: Mask | None = None

    def unreadable(self) -> Iterator[_Finding]:
        if self.bad is not None:
            yield self._finding(Reason.BAD_DECIMAL, self.bad, "a decimal(28,10)")

    def not_positive(self, reason: Reason) -> Iterator[_Finding]:
        high, low = decimal_words(self.values)
        rows = (high < 0) | ((high == 0) & (low == 0))
        if rows.any():
            yield self._finding(reason, rows, "above 0")

    def negative(self) -> Iterator[_Finding]:
        rows = decimal_words(self.values)[0] < 0
        if rows.any():
            yield self._finding(Reason.BID_ASK_NEGATIVE, rows, "0 or above")

    def _finding(self, reason: Reason, rows: Mask, allowed: str) -> _Finding:
        return _Finding(
            reason,
            rows,
            lambda row: f"{self.name} is {self.text[row].as_py()[:64]!r}; allowed: {allowed}",
        )


#: Text that is a decimal(28,10) at sight; anything else is tried.
_PLAIN: Final = r"^-?[0-9]{1,18}(\.[0-9]{1,10})?$"


def _decimal(text: pa.Array, name: str) -> _Decimal:
    try:
        return _Decimal(name, text, to_decimal(text, name))
    except DecodeError:
        return _decimal_apart(text, name)


def _decimal_apart(text: pa.Array, name: str) -> _Decimal:
    """Find the unreadable ones with the lake's own cast: what passes here passes there."""
    bad = np.zeros(len(text), np.bool_)
    for row in np.flatnonzero(~_mask(pc.match_substring_regex(text, _PLAIN))).tolist():
        try:
            to_decimal(text.slice(row, 1), name)
        except DecodeError:
            bad[row] = True
    return _Decimal(name, text, to_decimal(pc.if_else(pa.array(bad), "0", text), name), bad)


def _lengths(text: pa.Array) -> npt.NDArray[np.int32]:
    return np.diff(offsets_of(text))


def _mask(array: pa.Array) -> Mask:
    mask: Mask = array.to_numpy(zero_copy_only=False)
    return mask
