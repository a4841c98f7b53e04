"""Gaps as people ask for them: each range that was found missing, and what became of it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from k2.pipeline.intervals import IntervalSet
from k2.pipeline.open_gaps import Feed

#: Events in the order in which they happened; a range opens before it closes.
EVENTS_SQL: Final = (
    "select detected_at, symbol, exchange, data_type, event, expected, received, how from gaps "
    "order by detected_at, log_topic, log_partition, platform_sequence, event desc"
)
MAX_EVENTS: Final = 100_000


@dataclass(slots=True)
class Gap:
    """Ids `expected` to `received` - 1 of one feed. `missing`: those that have not come since.

    `closed_at`: when the last of them came; `how` it did: `late` or `backfill`, else `jump`.
    """

    feed: Feed
    detected_at: dt.datetime
    expected: int
    received: int
    missing: IntervalSet
    closed_at: dt.datetime | None = None
    how: str = "jump"

    @property
    def size(self) -> int:
        return self.received - self.expected

    @property
    def state(self) -> str:
        """`open` or `closed`."""
        return "open" if self.closed_at is None else "closed"

    def as_json(self) -> dict[str, Any]:
        """One row of `/v1/gaps`."""
        return {
            "exchange": self.feed.exchange,
            "symbol": self.feed.symbol,
            "data_type": self.feed.data_type,
            "state": self.state,
            "expected": self.expected,
            "received": self.received,
            "size": self.size,
            "missing": self.missing.size(),
            "detected_at": self.detected_at,
            "closed_at": self.closed_at,
            "how": self.how,
        }


def gaps_of(events: Iterable[Mapping[str, Any]]) -> list[Gap]:
    """Every gap, in the order of detection, from rows of `EVENTS_SQL`.

    After a restart an event may be told again; a range that is open already opens no second gap.
    """
    found: list[Gap] = []
    open_gaps: dict[Feed, list[Gap]] = {}
    for event in events:
        feed = Feed(event["exchange"], event["data_type"], event["symbol"])
        first, last = int(event["expected"]), int(event["received"]) - 1
        waiting = open_gaps.setdefault(feed, [])
        if event["event"] == "opened":
            if not any(first in gap.missing for gap in waiting):
                gap = Gap(
                    feed, event["detected_at"], first, last + 1, IntervalSet(((first, last),))
                )
                waiting.append(gap)
                found.append(gap)
            continue
        for gap in waiting:
            gap.missing.remove(first, last)
            if not len(gap.missing):
                gap.closed_at, gap.how = event["detected_at"], event["how"]
        open_gaps[feed] = [gap for gap in waiting if gap.closed_at is None]
    return found
