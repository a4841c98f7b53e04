"""What the ids of one symbol say: which were seen, which are missing, which come twice.

Both kinds of feed are judged run by run. `take` gives the same answers however a run is cut, so
that the boundaries of batches do not matter.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from k2.pipeline.intervals import Ids, IntervalSet, Run

#: Before any time an exchange sends, and far enough from the end of int64 to add to.
NEVER_US: Final = -(2**62)
#: Ids of a rising feed remembered one by one, per symbol. They are most of a checkpoint's bytes:
#: 10,000 symbols with 512 each made 3.6 MB, which took 0.2 s to write.
RECENT_IDS: Final = 128
#: A gap of at most this many ids is small (SEQ-01).
SMALL_GAP: Final = 10


@dataclass(slots=True)
class Sorted:
    """The rows of a batch, brought together by symbol, and what was found about them.

    `keep` starts all True. `opened`: (symbol, first id, last id, row); `closed` the same plus
    whether the row that closed it was back-filled; the row is the one with the last id.
    """

    ids: Ids
    keep: npt.NDArray[np.bool_]
    backfill: npt.NDArray[np.bool_] | None = None
    sessions: npt.NDArray[np.int32] | None = None
    session_names: list[bytes] = field(default_factory=lambda: [b""])
    late: int = 0
    small_gaps: int = 0
    large_gaps: int = 0
    resets: int = 0
    opened: list[tuple[str, int, int, int]] = field(default_factory=list)
    closed: list[tuple[str, int, int, int, bool]] = field(default_factory=list)

    def session(self, row: int) -> bytes:
        return self.session_names[0 if self.sessions is None else self.sessions[row]]


class Generation:
    """Ids of one symbol since the exchange last started over.

    `seen`: ids this incarnation of the log brought; `seed`: ids the lake has from others, not part
    of the state. `at`: id of the newest record in log order, -1 before the first. `last_us`:
    latest exchange time.
    """

    __slots__ = ("at", "last_us", "seed", "seed_high", "seen")

    def __init__(self) -> None:
        self.seen = IntervalSet()
        self.seed: IntervalSet | None = None
        self.seed_high = -1
        self.at = -1
        self.last_us = NEVER_US

    @property
    def high(self) -> int:
        """The highest id known; -1 when none is."""
        return max(self.seen.high, self.seed_high)

    @property
    def low(self) -> int:
        """The lowest id known; -1 when none is."""
        lows = [ids.low for ids in (self.seen, self.seed) if ids]
        return min(lows, default=-1)

    def sow(self, seed: IntervalSet, last_us: int) -> None:
        """Let the ids of `seed` be duplicates from now on."""
        self.seed, self.seed_high = seed, seed.high
        if self.at < 0:
            self.last_us = last_us

    def take(self, rows: Sorted, symbol: str, lo: int, hi: int) -> None:
        """Judge rows `lo..hi` (exclusive), one run of the feed's kind of order."""
        raise NotImplementedError


class Contiguous(Generation):
    """A feed that numbers its records one by one. A run is ids rising by one.

    Whatever lies between two known ids and is not known is missing, whichever of them came first.
    `gaps`: those ids, but for what lies between ids of the lake: the log that left it out has
    disclosed it.
    """

    __slots__ = ("gaps",)

    def __init__(self) -> None:
        super().__init__()
        self.gaps = IntervalSet()

    def sow(self, seed: IntervalSet, last_us: int) -> None:
        super().sow(seed, last_us)
        if self.at < 0:
            self.at = seed.high

    def take(self, rows: Sorted, symbol: str, lo: int, hi: int) -> None:
        first = int(rows.ids[lo])
        last = first + hi - lo - 1
        seen = self.seen
        if first != seen.high + 1 or first <= self.seed_high:
            self._judge(rows, symbol, lo, first, last)
        seen.add(first, last)
        self.at = last

    def _judge(self, rows: Sorted, symbol: str, lo: int, first: int, last: int) -> None:
        high = self.high
        unseen = self._unseen(first, last)
        # An id between known ones shows nothing: what is missing there has been told.
        if first > high >= 0:
            self._open(rows, symbol, lo, high + 1, first - 1)
        elif first < self.low:
            self._open(rows, symbol, lo, first + 1, self.low - 1)
        if unseen != [(first, last)]:
            rows.keep[lo : lo + last - first + 1] = False
        for start, end in unseen:
            rows.keep[lo + start - first : lo + end - first + 1] = True
            filled = min(end, high)
            if start <= filled:
                rows.late += filled - start + 1
                self._close(rows, symbol, lo - first, start, filled)

    def _unseen(self, first: int, last: int) -> list[Run]:
        unseen = self.seen.holes(first, last)
        if self.seed is None or first > self.seed_high:
            return unseen
        return [run for hole in unseen for run in self.seed.holes(*hole)]

    def _open(self, rows: Sorted, symbol: str, lo: int, first: int, last: int) -> None:
        """Disclose that `first..last` are missing, as far as that is not known."""
        missing = self.gaps.holes(first, last) if first <= last else []
        for start, end in missing:
            rows.opened.append((symbol, start, end, lo))
            self.gaps.add(start, end)
        size = sum(end - start + 1 for start, end in missing)
        rows.small_gaps += 0 < size <= SMALL_GAP
        rows.large_gaps += size > SMALL_GAP

    def _close(self, rows: Sorted, symbol: str, shift: int, first: int, last: int) -> None:
        """Strike `first..last`, whose rows are at id + `shift`, off the open gaps."""
        came = self.gaps.parts(first, last)
        if self.seed is not None and first < self.seed_high:
            # What the lake lacks between its ids was disclosed by the log that left it out.
            inner = (max(first, self.seed.starts[0]), min(last, self.seed_high))
            if inner[0] <= inner[1]:
                came = list(IntervalSet((*came, inner)))
        for start, end in came:
            self.gaps.remove(start, end)
            filled = rows.backfill is not None and bool(rows.backfill[end + shift])
            rows.closed.append((symbol, start, end, end + shift, filled))


class Members(Generation):
    """Ids without order, of which only membership counts. A run is ids rising by one."""

    __slots__ = ()

    def take(self, rows: Sorted, symbol: str, lo: int, hi: int) -> None:
        first = int(rows.ids[lo])
        last = first + hi - lo - 1
        unseen = self.seen.holes(first, last)
        if self.seed is not None:
            unseen = [run for hole in unseen for run in self.seed.holes(*hole)]
        if unseen != [(first, last)]:
            rows.keep[lo:hi] = False
            for start, end in unseen:
                rows.keep[lo + start - first : lo + end - first + 1] = True
        self.seen.add(first, last)
        self.at = last


class Rising(Generation):
    """A feed whose ids rise but skip (Binance `u`). A run is rising ids of one source session.

    Inside a session delivery is in order, so receiving u1 and then u2 means that nothing between
    them is still to come: `seen` covers u1..u2. What was lost between two sessions stays
    uncovered, and is accepted when it is replayed. `recent` are the newest ids one by one, all
    that were seen above `floor` among them: an id that is covered but provably never came is
    late, not a duplicate.
    """

    __slots__ = ("_floor", "recent", "session", "window")

    def __init__(self, window: int = RECENT_IDS) -> None:
        super().__init__()
        self.window = window
        self.session = b""
        self.recent = array("q")
        self._floor = -1

    @property
    def floor(self) -> int:
        """The highest id that left `recent`."""
        excess = len(self.recent) - self.window
        if excess > 0:
            self._floor = max(self._floor, *self.recent[:excess])
            del self.recent[:excess]
        return self._floor

    @floor.setter
    def floor(self, value: int) -> None:
        self._floor = value

    def take(self, rows: Sorted, symbol: str, lo: int, hi: int) -> None:
        session = rows.session(lo)
        fresh = self.at < 0 or session != self.session
        self.session = session
        seen, first, last = self.seen, int(rows.ids[lo]), int(rows.ids[hi - 1])
        index = bisect_right(seen.starts, first) - 1
        if index >= 0 and first <= seen.ends[index]:
            if last <= seen.ends[index] and last <= self.floor:
                rows.keep[lo:hi] = False
                self.at = last if fresh else max(self.at, last)
                return
        elif (index + 1 == len(seen) or last < seen.starts[index + 1]) and (
            fresh or first > self.at or first <= self.floor
        ):
            self._take_uncovered(rows, lo, hi, 0 if fresh else index + 1)
            return
        # Mixed. What lies above everything is uncovered again, so one stray id stays cheap.
        above = lo + int(np.searchsorted(rows.ids[lo:hi], seen.high, side="right"))
        for row in range(lo, above):
            self._take_one(rows, row, fresh and row == lo)
        if above < hi:
            self._take_uncovered(rows, above, hi, len(seen))

    def _take_uncovered(self, rows: Sorted, lo: int, hi: int, above: int) -> None:
        """Ids of which none is covered; run number `above - 1` is the next below them, if any."""
        ids = rows.ids[lo:hi]
        first, last = int(ids[0]), int(ids[-1])
        high = self.high
        if first <= self.seed_high and self.seed is not None:
            rows.keep[lo:hi] = ~self.seed.contains(ids)
        if first <= high:
            rows.late += int(np.count_nonzero(rows.keep[lo:hi] & (ids <= high)))
        self._cover(first, last, above)
        self.at = last
        self.recent.frombytes(ids.tobytes())
        if len(self.recent) > 16 * self.window:
            _ = self.floor

    def _cover(self, first: int, last: int, above: int) -> None:
        seen = self.seen
        if above and first > self.at >= seen.starts[above - 1]:
            # The session goes on from the run next below: nothing between is still to come.
            first = seen.ends[above - 1] + 1
        seen.add(first, last)

    def _take_one(self, rows: Sorted, row: int, fresh: bool) -> None:
        seen, id_, high = self.seen, int(rows.ids[row]), self.high
        index = bisect_right(seen.starts, id_) - 1
        covered = index >= 0 and id_ <= seen.ends[index]
        known = covered and (id_ <= self.floor or self._is_recent(id_))
        forward = fresh or id_ > self.at
        if not covered:
            self._cover(id_, id_, index + 1 if forward and not fresh else 0)
        if forward or (not covered and id_ <= self.floor):
            self.at = id_
        if not known:
            self.recent.append(id_)
        if known or (self.seed is not None and id_ in self.seed):
            rows.keep[row] = False
        elif id_ <= high:
            rows.late += 1

    def _is_recent(self, id_: int) -> bool:
        return bool(self.recent) and bool((np.frombuffer(self.recent, np.int64) == id_).any())
