"""Deferred: what was shed is read again and brought to `<topic>.deferred`.

Its groups carry the offsets of the log of record like those of `.validated`, and their ranges abut:
the range after what was brought so far, all that was shed in it, nothing else. The records were
judged before they were shed, so their bytes are copied as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from k2.degradation.ledger import Ledger, LogPlace
from k2.degradation.levels import Level
from k2.degradation.shed import ShedRange
from k2.pipeline.groups import Cut, Records, in_groups
from k2.pipeline.validate import picked
from k2.topics import MarketTopic
from k2.transport.batch import LogBatch, OutBatch

#: A stretch of the log without shed records that is worth skipping.
SKIP_RECORDS: Final = 50_000


class Span(NamedTuple):
    """Offsets of a log of record to read again, inclusive."""

    first: int
    last: int


def plan(ledger: Ledger, place: LogPlace, level: int) -> list[Span]:
    """What to read again now, by rising offset; nothing while the level is above NORMAL."""
    if level > Level.NORMAL:
        return []
    through = ledger.through(place)
    spans: list[Span] = []
    for shed in ledger.pending(place):
        first = max(shed.first, through + 1)
        if spans and first <= spans[-1].last + SKIP_RECORDS:
            spans[-1] = Span(spans[-1].first, max(spans[-1].last, shed.last))
        else:
            spans.append(Span(first, shed.last))
    return spans


def lost(
    shed: Sequence[ShedRange],
    *,
    topic: MarketTopic,
    place: LogPlace,
    through: int,
    until: int,
    cut: Cut,
) -> tuple[list[OutBatch], int]:
    """A group without records over `through` (exclusive) to `until`, and how many it lacks.

    For offsets that the log of record has deleted before they could be brought.
    """
    offsets = [one.offsets() for one in shed if one.first <= until and one.last > through]
    missing = sum(int(((some > through) & (some <= until)).sum()) for some in offsets)
    groups = in_groups(
        Records(np.empty(0, np.int64), [], []),
        topic=topic.deferred,
        partition=place.partition,
        epoch=place.epoch,
        first=through + 1,
        last=until,
        cut=cut,
    )
    return groups, missing


def emit_deferred(
    batch: LogBatch,
    shed: Sequence[ShedRange],
    *,
    topic: MarketTopic,
    epoch: str,
    through: int,
    last: int,
    cut: Cut,
) -> tuple[list[OutBatch], int]:
    """What of `batch` was shed, as groups; and the offset through which everything is brought.

    `batch`: of the log of record, inside a planned span or from before it; `shed`: what is pending;
    `through`: what was brought before (`Ledger.through`); `last`: the end of the span, which is
    not gone beyond: later records may be shed yet. Once the groups are acknowledged the ledger is
    told with `Ledger.resolved`.
    """
    until = min(batch.last_offset, last)
    if until <= through:
        return [], through
    inside = [one for one in shed if one.first <= until and one.last > through]
    wanted = np.concatenate([np.empty(0, np.int64), *(one.offsets() for one in inside)])
    chosen = np.isin(batch.offsets, wanted) & (batch.offsets > through) & (batch.offsets <= until)
    groups = in_groups(
        picked(batch, np.flatnonzero(chosen)),
        topic=topic.deferred,
        partition=batch.partition,
        epoch=epoch,
        first=through + 1,
        last=until,
        cut=cut,
    )
    return groups, until
