"""Sets of integer ids, held as their maximal runs.

Contiguous ids collapse to one interval, so that a feed of a million trades costs sixteen bytes.
The bounds are `array("q")`, not numpy: the hot path asks about single bounds, where `bisect` on it
takes 0.1 us and `numpy.searchsorted` 2 us; bulk questions view the same memory as numpy.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Self

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
#: First and last id of a run, both inclusive.
Run = tuple[int, int]


class IntervalSet:
    """Int64 ids as disjoint inclusive runs, rising, never adjacent.

    `starts`, `ends`: the bounds, for reading only.
    """

    __slots__ = ("ends", "starts")

    def __init__(self, runs: tuple[Run, ...] = ()) -> None:
        self.starts = array("q")
        self.ends = array("q")
        for first, last in runs:
            self.add(first, last)

    @classmethod
    def from_arrays(cls, starts: npt.ArrayLike, ends: npt.ArrayLike) -> Self:
        """The union of the runs `starts[i]..ends[i]`, in any order, overlapping or adjacent."""
        first, last = np.asarray(starts, np.int64), np.asarray(ends, np.int64)
        made = cls()
        if not len(first):
            return made
        order = np.argsort(first, kind="stable")
        first, reach = first[order], np.maximum.accumulate(last[order])
        # `first - 1`, not `reach + 1`: ids are not negative, and the largest must not wrap.
        opens = np.concatenate(([True], first[1:] - 1 > reach[:-1]))
        made.starts.frombytes(first[opens].tobytes())
        made.ends.frombytes(reach[np.concatenate((opens[1:], [True]))].tobytes())
        return made

    @classmethod
    def from_ids(cls, ids: npt.ArrayLike) -> Self:
        """The set of `ids`, in any order, repeated or not."""
        unique = np.unique(np.asarray(ids, np.int64))
        return cls.from_arrays(unique, unique)

    def __len__(self) -> int:
        """The number of runs."""
        return len(self.starts)

    def __iter__(self) -> Iterator[Run]:
        return zip(self.starts, self.ends, strict=True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IntervalSet):
            return NotImplemented
        return self.starts == other.starts and self.ends == other.ends

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"IntervalSet({list(self)})"

    def arrays(self) -> tuple[Ids, Ids]:
        """Copies of the bounds."""
        return (
            np.array(self.starts, np.int64),
            np.array(self.ends, np.int64),
        )

    def size(self) -> int:
        """The number of ids."""
        return sum(self.ends) - sum(self.starts) + len(self.starts)

    @property
    def high(self) -> int:
        """The highest id; -1 when empty."""
        return self.ends[-1] if self.ends else -1

    @property
    def low(self) -> int:
        """The lowest id; -1 when empty."""
        return self.starts[0] if self.starts else -1

    def find(self, id_: int) -> int:
        """The index of the run that holds `id_`; -1 when none does."""
        index = bisect_right(self.starts, id_) - 1
        return index if index >= 0 and id_ <= self.ends[index] else -1

    def __contains__(self, id_: int) -> bool:
        return self.find(id_) >= 0

    def contains(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Bool mask: which of `ids` (any order) are in the set."""
        if not self.starts:
            return np.zeros(len(ids), np.bool_)
        starts, ends = np.frombuffer(self.starts, np.int64), np.frombuffer(self.ends, np.int64)
        index = np.searchsorted(starts, ids, side="right") - 1
        return (index >= 0) & (ids <= ends[np.maximum(index, 0)])

    def below(self, id_: int) -> int:
        """The highest id of the set that is lower than `id_`; -1 when there is none."""
        index = bisect_left(self.starts, id_) - 1
        return min(self.ends[index], id_ - 1) if index >= 0 else -1

    def add(self, first: int, last: int) -> None:
        """Put in `first..last`. Continuing or following the highest run takes constant time."""
        starts, ends = self.starts, self.ends
        if not ends or first > ends[-1] + 1:
            starts.append(first)
            ends.append(last)
        elif first == ends[-1] + 1:
            ends[-1] = last
        else:
            self._merge(first, last)

    def _merge(self, first: int, last: int) -> None:
        starts, ends = self.starts, self.ends
        # Adjacent runs merge too, so the search is one id wider on both sides.
        left = bisect_left(ends, first - 1)
        right = bisect_right(starts, last + 1)
        if left < right:
            first, last = min(first, starts[left]), max(last, ends[right - 1])
        starts[left:right] = array("q", (first,))
        ends[left:right] = array("q", (last,))

    def remove(self, first: int, last: int) -> None:
        """Take out `first..last`; ids that are not in the set are ignored."""
        starts, ends = self.starts, self.ends
        left = bisect_left(ends, first)
        right = bisect_right(starts, last)
        if left >= right:
            return
        outer = [(starts[left], first - 1), (last + 1, ends[right - 1])]
        rest = [run for run in outer if run[0] <= run[1]]
        starts[left:right] = array("q", [run[0] for run in rest])
        ends[left:right] = array("q", [run[1] for run in rest])

    def parts(self, first: int, last: int) -> list[Run]:
        """The runs of the set inside `first..last`, cut to it."""
        starts, ends = self.starts, self.ends
        left, right = bisect_left(ends, first), bisect_right(starts, last)
        return [(max(first, starts[i]), min(last, ends[i])) for i in range(left, right)]

    def holes(self, first: int, last: int) -> list[Run]:
        """The runs inside `first..last` that are not in the set."""
        runs, at = [], first
        for start, end in self.parts(first, last):
            if start > at:
                runs.append((at, start - 1))
            at = end + 1
        if at <= last:
            runs.append((at, last))
        return runs

    def forget(self, runs: int) -> int:
        """Take out the `runs` lowest runs; returns the highest id taken out (-1: none)."""
        if runs <= 0 or not self.starts:
            return -1
        taken = self.ends[min(runs, len(self.ends)) - 1]
        del self.starts[:runs]
        del self.ends[:runs]
        return taken
