"""Rows and runs for the tests of continuity."""

import itertools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from k2.pipeline.continuity import Rows


@dataclass
class Seed:
    starts: np.ndarray
    ends: np.ndarray
    last_timestamp_us: int = 0
    older: tuple = ()


def rows(records, at=0):
    """Rows of (symbol, id, time[, backfill[, session]]) at offsets from `at`."""
    wide = [(*r, False, None)[:5] if len(r) == 3 else (*r, None)[:5] for r in records]
    marks = [(i, r[4]) for i, r in enumerate(wide) if r[4] is not None]
    times = np.array([r[2] for r in wide], np.int64)
    return Rows(
        symbols=pa.array([r[0] for r in wide], pa.string()),
        ids=np.array([r[1] for r in wide], np.int64),
        timestamps_us=times,
        receive_us=times + 5,
        offsets=np.arange(at, at + len(wide), dtype=np.int64),
        backfill=np.array([r[3] for r in wide], np.bool_),
        sessions=marks,
    )


def trades(*ids, symbol="A", time=1_000, backfill=False):
    return [(symbol, i, time, backfill) for i in ids]


def run(continuity, records, cuts=()):
    """Apply in pieces; returns (keep, events, summed counts)."""
    edges = [0, *sorted(cuts), len(records)]
    keep, events, total = [], [], np.zeros(6, np.int64)
    for start, stop in itertools.pairwise(edges):
        result = continuity.apply(rows(records[start:stop], at=start))
        keep += result.keep.tolist()
        events += result.events
        c = result.counts
        total += [c.ok, c.late, c.duplicates, c.small_gaps, c.large_gaps, c.resets]
    return keep, events, total.tolist()


def open_after(events):
    """Ids of one symbol that events in their order leave open."""
    missing = set()
    for e in events:
        ids = set(range(e.first_id, e.last_id + 1))
        missing = missing | ids if e.event == "opened" else missing - ids
    return missing
