"""Open gaps from the lake's gap events: what was opened less what came after all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from k2.pipeline.intervals import IntervalSet


class Feed(NamedTuple):
    """Ids count on their own per exchange, data type and symbol."""

    exchange: str
    data_type: str
    symbol: str


def open_ranges(events: Iterable[Mapping[str, Any]]) -> dict[Feed, list[tuple[int, int]]]:
    """Inclusive ranges of missing ids per feed, from rows of `market_data.gaps` in any order.

    An id that came is known for good, so order does not matter, and offsets could not tell it: what
    one incarnation of the log opened another may close. A range that closed may be told twice after
    a restart, so sizes must not be added up.
    """
    opened: dict[Feed, IntervalSet] = {}
    closed: dict[Feed, IntervalSet] = {}
    for event in events:
        feed = Feed(event["exchange"], event["data_type"], event["symbol"])
        told = opened if event["event"] == "opened" else closed
        first, last = int(event["expected"]), int(event["received"]) - 1
        told.setdefault(feed, IntervalSet()).add(first, last)
    for feed, ids in opened.items():
        for first, last in closed.get(feed, ()):
            ids.remove(first, last)
    return {
        feed: list(zip(ids.starts.tolist(), ids.ends.tolist(), strict=True))
        for feed, ids in opened.items()
        if len(ids)
    }
