"""Groups: outputs cut into record batches, each with the cover of its range."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from k2.pipeline.cover import COVER_HEADER, Cover
from k2.transport.batch import Headers, OutBatch

_Offsets = npt.NDArray[np.int64]

#: Bytes of a record besides key and value, its share of a cover's runs included; an upper bound.
_RECORD_BYTES: Final = 48
#: Bytes of a group besides its records: heads of batch and cover, the note of what was shed (a bit
#: per offset and tier).
_GROUP_BYTES: Final = 16_000


@dataclass(frozen=True, slots=True)
class Cut:
    """The most one group may hold, bytes before compression."""

    max_records: int
    max_bytes: int

    def fits(self, key: bytes | None, value: bytes | None) -> bool:
        """True when a record can be in a group at all."""
        size = len(key or b"") + len(value or b"") + _RECORD_BYTES
        return size <= self.max_bytes - _GROUP_BYTES


@dataclass(frozen=True, slots=True)
class Records:
    """Records for one partition: `offsets` are theirs in the log of record, rising or repeated."""

    offsets: _Offsets
    keys: Sequence[bytes | None]
    values: Sequence[bytes]
    timestamps_ms: npt.NDArray[np.int64] | None = None


def in_groups(
    records: Records,
    *,
    topic: str,
    partition: int,
    epoch: str,
    first: int,
    last: int,
    cut: Cut,
    headers: Callable[[int, int], Headers] = lambda _first, _last: (),
) -> list[OutBatch]:
    """`records` as groups whose ranges abut from `first` through `last`; at least one.

    `headers` gives what a group's range carries besides its cover.
    """
    groups = []
    for start, stop in _slices(records, cut):
        offsets = records.offsets[start:stop]
        until = last if stop == len(records.offsets) else int(offsets[-1])
        cover = Cover(epoch, first, until, offsets)
        times = records.timestamps_ms
        groups.append(
            OutBatch(
                topic,
                partition,
                list(records.values[start:stop]) or [None],
                list(records.keys[start:stop]) or [None],
                None if times is None or start == stop else times[start:stop],
                ((COVER_HEADER, cover.to_bytes()), *headers(first, until)),
            )
        )
        first = until + 1
    return groups


def _slices(records: Records, cut: Cut) -> list[tuple[int, int]]:
    count = len(records.offsets)
    if not count:
        return [(0, 0)]
    budget = cut.max_bytes - _GROUP_BYTES
    sizes = np.fromiter(map(len, records.values), np.int64, count)
    # Keys are symbols and places: the longest stands for all, which saves looking at each.
    sizes += max(map(len, filter(None, records.keys)), default=0) + _RECORD_BYTES
    ends = np.cumsum(sizes)
    slices, start = [], 0
    while start < count:
        before = int(ends[start - 1]) if start else 0
        stop = min(
            start + cut.max_records, int(np.searchsorted(ends, before + budget, side="right"))
        )
        stop = max(stop, start + 1)
        # Outputs of one record of the log stay together: a range ends with a record.
        while stop < count and records.offsets[stop] == records.offsets[stop - 1]:
            stop += 1
        slices.append((start, stop))
        start = stop
    return slices
