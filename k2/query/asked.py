"""What records are asked for, and in which order they come."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from k2.query.bounds import Bounds
from k2.query.cold import TIE_BREAK
from k2.query.filters import Between, Key, OneOf

#: What is found on the event loop itself: a page of a thousand, and the row behind it.
QUICK_ROWS: Final = 1_001


@dataclass(frozen=True, slots=True)
class RecordsQuery:
    """The first `limit` rows. Times in µs, `start` inclusive, `end` exclusive.

    `after`: only rows behind this one in the order of the query, whatever was written meanwhile.
    """

    symbols: frozenset[str] | None = None
    exchanges: frozenset[str] | None = None
    start_us: int | None = None
    end_us: int | None = None
    limit: int = 100
    time_column: str = "timestamp"
    newest_first: bool = True
    filters: tuple[OneOf | Between, ...] = ()
    after: Key | None = None

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.symbols, *self.times)

    @property
    def times(self) -> tuple[int | None, int | None]:
        """`start` and `end`, narrowed to where rows after the key can be."""
        start, end = self.start_us, self.end_us
        if self.after is not None and self.newest_first:
            end = least(end, self.after.time_us + 1)
        elif self.after is not None:
            start = most(start, self.after.time_us)
        return start, end

    @property
    def tests(self) -> tuple[OneOf | Between, ...]:
        names = (("symbol", self.symbols), ("exchange", self.exchanges))
        chosen = (OneOf(column, values) for column, values in names if values is not None)
        return (*chosen, *self.filters)

    @property
    def order(self) -> list[tuple[str, str]]:
        direction = "descending" if self.newest_first else "ascending"
        return [(name, direction) for name in (self.time_column, *TIE_BREAK)]


def narrowed(query: RecordsQuery, edge: int | None) -> RecordsQuery:
    """Only what is at least as near as `edge`."""
    if edge is None:
        return query
    if query.newest_first:
        return replace(query, start_us=most(query.start_us, edge))
    return replace(query, end_us=least(query.end_us, edge + 1))


def beyond(times_us: tuple[int, int], edge: int, query: RecordsQuery) -> bool:
    """True when nothing between these times comes before `edge`, the limit-th timestamp known."""
    # Equal timestamps are decided by the tie break, so only what lies beyond is out.
    return times_us[1] < edge if query.newest_first else times_us[0] > edge


def nth_of(times: npt.NDArray[np.int64], query: RecordsQuery) -> int:
    """The limit-th of `times` in the order of the query."""
    nth = len(times) - query.limit if query.newest_first else query.limit - 1
    return int(np.partition(times, nth)[nth])


def near(times: npt.NDArray[np.int64], edge: int, query: RecordsQuery) -> npt.NDArray[np.bool_]:
    """Which of `times` are at least as near as `edge`."""
    found: npt.NDArray[np.bool_] = times >= edge if query.newest_first else times <= edge
    return found


def most(left: int | None, right: int) -> int:
    return right if left is None else max(left, right)


def least(left: int | None, right: int) -> int:
    return right if left is None else min(left, right)
