"""Conditions on rows, once for DuckDB and once for Arrow, with the same meaning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from k2.decimals import DECIMAL
from k2.query.cold import TIE_BREAK, identifier

Sql = tuple[str, list[Any]]


class Key(NamedTuple):
    """A row's place in the total order of its table."""

    time_us: int
    platform_sequence: int
    log_partition: int
    log_topic: str
    log_epoch: str

    @property
    def place(self) -> tuple[int, str, str]:
        """log_partition, log_topic and log_epoch: where its platform_sequence counts."""
        return self[2:]


@dataclass(frozen=True, slots=True)
class OneOf:
    """The text column has one of `values`."""

    column: str
    values: frozenset[str]

    def mask(self, rows: pa.Table) -> Any:
        return pc.is_in(rows[self.column], value_set=pa.array(sorted(self.values), pa.string()))

    def sql(self) -> Sql:
        marks = ", ".join("?" * len(self.values))
        test = f"= {marks}" if len(self.values) == 1 else f"IN ({marks})"
        return f"{identifier(self.column)} {test}", sorted(self.values)


@dataclass(frozen=True, slots=True)
class Between:
    """The decimal column is within `low`..`high`, both inclusive; None: open."""

    column: str
    low: Decimal | None = None
    high: Decimal | None = None

    def mask(self, rows: pa.Table) -> Any:
        values = rows[self.column]
        tests = []
        if self.low is not None:
            tests.append(pc.greater_equal(values, pa.scalar(self.low, DECIMAL)))
        if self.high is not None:
            tests.append(pc.less_equal(values, pa.scalar(self.high, DECIMAL)))
        return all_of(tests)

    def sql(self) -> Sql:
        name = identifier(self.column)
        pairs = ((">=", self.low), ("<=", self.high))
        tests = [f"{name} {sign} ?::DECIMAL(28, 10)" for sign, value in pairs if value is not None]
        return " AND ".join(tests), [str(value) for _, value in pairs if value is not None]


def all_of(masks: Sequence[Any]) -> Any:
    """All conditions together; None when there is none."""
    whole = None
    for mask in masks:
        whole = mask if whole is None else pc.and_(whole, mask)
    return whole


def key_of(rows: pa.Table, index: int, time_column: str) -> Key:
    """The key of one row."""
    time_us = rows[time_column][index].cast(pa.int64()).as_py()
    return Key(time_us, *(rows[name][index].as_py() for name in TIE_BREAK))


def key_sql(time_column: str, key: Key, *, newest_first: bool) -> Sql:
    """Rows behind `key`."""
    names = ", ".join(map(identifier, (time_column, *TIE_BREAK)))
    sign = "<" if newest_first else ">"
    return f"({names}) {sign} (make_timestamptz(?::BIGINT), ?, ?, ?, ?)", list(key)


def after_key(rows: pa.Table, time_column: str, key: Key, *, newest_first: bool) -> Any:
    """Rows behind `key`, column by column: a later one decides only where all before are equal."""
    behind = pc.less if newest_first else pc.greater
    columns = [rows[time_column].cast(pa.int64()), *(rows[name] for name in TIE_BREAK)]
    mask = None
    for column, value in reversed(list(zip(columns, key, strict=True))):
        here = behind(column, pa.scalar(value, column.type))
        if mask is not None:
            here = pc.or_(here, pc.and_(pc.equal(column, pa.scalar(value, column.type)), mask))
        mask = here
    return mask
