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
    """Inclusive ranges of missing ids per feed, from rows of `market_data.gaps` in log order.

    A range that closed may be told twice after a restart, so sizes must not be added up.
    """
    missing: dict[Feed, IntervalSet] = {}
    for event in events:
        feed = Feed(event["exchange"], event["data_type"], event["symbol"])
        ids = missing.setdefault(feed, IntervalSet())
        first, last = int(event["expected"]), int(event["received"]) - 1
        if event["event"] == "opened":
            ids.add(first, last)
        else:
            ids.remove(first, last)
    return {
        feed: list(zip(ids.starts.tolist(), ids.ends.tolist(), strict=True))
        for feed, ids in missing.items()
        if len(ids)
    }
