"""Continuity: duplicates dropped, gaps disclosed, per symbol of one partition of one log.

The answer depends on the log and on the state before it, never on where batches are cut. A batch
is brought together by symbol and cut into runs of ids with numpy; only runs are handled in Python,
and a symbol without incident has one run per batch.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2.pipeline.intervals import Ids, IntervalSet
from k2.pipeline.sequence import RECENT_IDS, Contiguous, Generation, Members, Rising, Sorted

Mask = npt.NDArray[np.bool_]

#: An exchange that starts its ids over does so after a pause of at least this (SEQ-02).
RESET_AFTER_US: Final = 3_600_000_000


class Policy(StrEnum):
    """How a feed's ids run."""

    #: Each id is the one before plus one: jumps are gaps.
    CONTIGUOUS = "contiguous"
    #: Ids rise and skip: duplicates are known, gaps are not.
    RISING = "rising"
    #: Ids without order: duplicates are known, gaps are not.
    SET = "set"
    #: No ids: everything passes.
    NONE = "none"


class SeedRanges(Protocol):
    """Ids of one symbol in the lake: inclusive ranges, and the exchange time of the newest.

    `older`: likewise from before the exchange started the ids over, oldest first.
    """

    @property
    def starts(self) -> Ids: ...

    @property
    def ends(self) -> Ids: ...

    @property
    def last_timestamp_us(self) -> int: ...

    @property
    def older(self) -> Sequence[SeedRanges]: ...


class Seeder(Protocol):
    """Asks the lake which ids of `symbols` it has; symbols it has not are absent.

    `own_before` None: rows of other incarnations of the log only. Else also the rows of this
    incarnation and partition whose platform_sequence is below it.
    """

    def __call__(
        self, symbols: Sequence[str], own_before: int | None
    ) -> Mapping[str, SeedRanges]: ...


class GapEvent(NamedTuple):
    """Ids found missing (`opened`, how `jump`) or come after all (`closed`: `late`, `backfill`).

    `log_offset`: the record that showed it; `ordinal`: its number among that record's events.
    A closed range may be told again, and larger, when the log is read again from a checkpoint.
    """

    symbol: str
    event: str
    first_id: int
    last_id: int
    how: str
    log_offset: int
    ordinal: int
    detected_at_us: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Records by what they were (ok + late + duplicates = all), and what they showed."""

    ok: int = 0
    late: int = 0
    duplicates: int = 0
    small_gaps: int = 0
    large_gaps: int = 0
    resets: int = 0

    def plus(self, other: Counts, ok: int = 0) -> Counts:
        """Both together, and `ok` records more."""
        return Counts(
            self.ok + other.ok + ok,
            self.late + other.late,
            self.duplicates + other.duplicates,
            self.small_gaps + other.small_gaps,
            self.large_gaps + other.large_gaps,
            self.resets + other.resets,
        )


@dataclass(slots=True)
class Rows:
    """Records of one partition in log order, as columns of one length.

    `ids` not negative; `timestamps_us`, `receive_us`: microseconds UTC; `offsets`: rising.
    `backfill` None means none is. `sessions`: (row, session) where a produced batch names its
    source session, rows rising; it holds until the next one.
    """

    symbols: pa.Array
    ids: Ids
    timestamps_us: Ids
    receive_us: Ids
    offsets: Ids
    backfill: Mask | None = None
    sessions: Sequence[tuple[int, bytes]] = ()

    def only(self, mask: Mask) -> Rows:
        """The rows of `mask`, sessions where they begin among them."""
        before = np.concatenate(([0], np.cumsum(mask)))
        return Rows(
            self.symbols.filter(pa.array(mask)),
            self.ids[mask],
            self.timestamps_us[mask],
            self.receive_us[mask],
            self.offsets[mask],
            None if self.backfill is None else self.backfill[mask],
            [(int(before[row]), name) for row, name in self.sessions],
        )


@dataclass(frozen=True, slots=True)
class Result:
    """`keep`: per row, False for a duplicate. `events` in the order of the log."""

    keep: Mask
    counts: Counts
    events: list[GapEvent] = field(default_factory=list)


class Trimmed(NamedTuple):
    """What `Continuity.trim` let go, and the symbols it had to keep above the bounds."""

    symbols: int
    runs: int
    over: int


class Track:
    """One symbol. `previous`: the ids before the exchange started over, for its late records.

    `own`: part of this incarnation's ids was let go; the lake has them. `forgotten`: ids up to
    this one were (-1: none). `mark`: (id, offset) of runs to be forgotten next.
    """

    __slots__ = (
        "current",
        "forgotten",
        "last_offset",
        "mark",
        "own",
        "previous",
        "resets",
        "seeded",
        "symbol",
    )

    def __init__(self, symbol: str, current: Generation, *, own: bool = False) -> None:
        self.symbol = symbol
        self.current = current
        self.previous: Generation | None = None
        self.resets = 0
        self.last_offset = -1
        self.seeded = False
        self.own = own
        self.forgotten = -1
        self.mark: tuple[int, int] | None = None

    def sow(self, seed: SeedRanges, make: Callable[[], Generation]) -> None:
        """Put the lake's ids under the generations they are of, the current one and the previous.

        Generations are numbered by `resets`, from the oldest in the lake on.
        """
        generations = (*seed.older, seed)
        if self.resets < len(seed.older):
            # Those of the lake were before ours.
            self.resets += len(seed.older)
        if self.resets and self.previous is None:
            self.previous = make()
        for number, generation in enumerate(generations):
            ids = IntervalSet.from_arrays(generation.starts, generation.ends)
            if number == self.resets:
                self.current.sow(ids, generation.last_timestamp_us)
            elif number == self.resets - 1 and self.previous is not None:
                self.previous.sow(ids, generation.last_timestamp_us)


class Continuity:
    """State of one (topic, partition, epoch). Not for use by several threads.

    `seed` is asked once per symbol and process, inside `apply`; it may block.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        seed: Seeder | None = None,
        max_symbols: int = 10_000,
        max_runs: int = 4_096,
        window: int = RECENT_IDS,
    ) -> None:
        self.policy = policy
        self.seed = seed
        self.max_symbols = max_symbols
        self.max_runs = max_runs
        self.window = window
        self.tracks: dict[str, Track] = {}
        self.session = b""
        self.evicted = False
        #: Some symbol's lowest runs were let go.
        self.forgot = False

    def __len__(self) -> int:
        return len(self.tracks)

    @property
    def may_ask(self) -> bool:
        """True when the lake may be asked for ids of this very incarnation."""
        return self.evicted or self.forgot

    @property
    def known(self) -> bool:
        """False while there is nothing that a checkpoint must keep."""
        return bool(self.tracks) or self.evicted

    def generation(self) -> Generation:
        """A generation of this feed's kind, without ids."""
        if self.policy is Policy.SET:
            return Members()
        return Rising(self.window) if self.policy is Policy.RISING else Contiguous()

    def apply(self, rows: Rows) -> Result:
        """Judge the records that follow those judged before. Raises what the seeder raises."""
        count = len(rows.ids)
        if not count and rows.sessions:
            self.session = rows.sessions[-1][1]
        if self.policy is Policy.NONE or not count:
            return Result(np.ones(count, np.bool_), Counts(ok=count))
        encoded = rows.symbols.dictionary_encode()
        names: list[str] = encoded.dictionary.to_pylist()
        codes = encoded.indices.to_numpy()
        # Before anything changes, so that a lake that cannot be read leaves the state as it was.
        tracks = self._tracks(names, codes, rows)
        order = _by_code(codes, len(names))
        found = self._sorted(rows, order)
        self._take(tracks, found, codes[order], rows.timestamps_us[order])
        self._touch(tracks, codes[order], rows.offsets[order])
        keep = np.empty(count, np.bool_)
        keep[order] = found.keep
        return _result(found, keep, rows, order)

    def trim(self, stored_through: int) -> Trimmed:
        """Hold to the bounds, letting go only what the lake has.

        `stored_through`: highest platform_sequence of this partition in the lake. An id let go is
        looked up in the lake when a record asks for it, so one that is not there yet would pass
        twice, and a symbol evicted too early would come back to a false gap. Without a seeder
        nothing is let go.
        """
        if self.seed is None:
            stored_through = -1
        # A symbol whose ids started over stays: the lake does not tell its generations apart.
        simple = [track for track in self.tracks.values() if not track.resets]
        excess = max(0, len(self.tracks) - self.max_symbols)
        oldest = heapq.nsmallest(excess, simple, key=lambda track: track.last_offset)
        gone = [track for track in oldest if track.last_offset <= stored_through]
        for track in gone:
            del self.tracks[track.symbol]
        self.evicted |= bool(gone)
        runs = [
            self._forget(track, stored_through)
            for track in self.tracks.values()
            if len(track.current.seen) > self.max_runs
        ]
        return Trimmed(len(gone), sum(runs), excess - len(gone) + runs.count(0))

    def _forget(self, track: Track, stored_through: int) -> int:
        """Let the lowest runs go, a while after choosing them: when the lake has caught up."""
        seen = track.current.seen
        if track.resets:
            return 0
        if track.mark is None:
            # Down to three quarters, so that it is not done again for the next run.
            excess = len(seen) - self.max_runs * 3 // 4
            track.mark = (seen.ends[excess - 1], track.last_offset)
        highest, offset = track.mark
        if offset > stored_through:
            return 0
        track.mark = None
        runs = sum(1 for end in seen.ends if end <= highest)
        track.forgotten = max(track.forgotten, seen.forget(runs))
        self.forgot = True
        # Ids seen since the lake was asked are among them: it is asked again.
        track.seeded &= not track.own
        if isinstance(track.current, Contiguous):
            track.current.gaps.remove(0, track.forgotten)
        return runs

    def _tracks(self, names: list[str], codes: npt.NDArray[np.int32], rows: Rows) -> list[Track]:
        tracks = [
            self.tracks.get(name) or Track(name, self.generation(), own=self.evicted)
            for name in names
        ]
        if self.seed is not None:
            for code, track in enumerate(tracks):
                # It asks for what was forgotten: from here on the lake's ids are held again.
                if track.forgotten >= 0 and not track.own:
                    track.own = int(rows.ids[codes == code].min()) <= track.forgotten
                    track.seeded &= not track.own
            self._sow([t for t in tracks if not t.seeded and not t.own], None)
            self._sow([t for t in tracks if not t.seeded and t.own], int(rows.offsets[0]))
        self.tracks.update(zip(names, tracks, strict=True))
        return tracks

    def _sow(self, tracks: list[Track], own_before: int | None) -> None:
        if not tracks or self.seed is None:
            return
        seeds = self.seed([track.symbol for track in tracks], own_before)
        for track in tracks:
            track.seeded = True
            seed = seeds.get(track.symbol)
            if seed is not None and len(seed.starts):
                track.sow(seed, self.generation)

    def _sorted(self, rows: Rows, order: npt.NDArray[np.intp]) -> Sorted:
        found = Sorted(rows.ids[order], np.ones(len(order), np.bool_))
        if rows.backfill is not None and rows.backfill.any():
            found.backfill = rows.backfill[order]
        if self.policy is Policy.RISING:
            found.session_names, per_row = self._sessions(rows)
            found.sessions = per_row[order]
        return found

    def _sessions(self, rows: Rows) -> tuple[list[bytes], npt.NDArray[np.int32]]:
        """Names, and per row the index of its session; rows before the first mark go on."""
        numbers: dict[bytes, int] = {self.session: 0}
        marks = [numbers.setdefault(name, len(numbers)) for _, name in rows.sessions]
        starts = [0, *(row for row, _ in rows.sessions), len(rows.ids)]
        if rows.sessions:
            self.session = rows.sessions[-1][1]
        return list(numbers), np.repeat(np.array([0, *marks], np.int32), np.diff(starts))

    def _take(
        self,
        tracks: list[Track],
        found: Sorted,
        codes: npt.NDArray[np.int32],
        times: Ids,
    ) -> None:
        starts = _cut(self.policy, found, codes, times)
        earliest = np.minimum.reduceat(times, starts).tolist()
        latest = np.maximum.reduceat(times, starts).tolist()
        runs = zip(
            codes[starts].tolist(),
            starts.tolist(),
            [*starts[1:].tolist(), len(times)],
            times[starts].tolist(),
            earliest,
            latest,
            strict=True,
        )
        for code, lo, hi, time, low, top in runs:
            track = tracks[code]
            if track.previous is not None and low <= track.previous.last_us:
                self._take_apart(track, found, lo, hi, times)
            else:
                self._take_run(track, found, lo, hi, time, top)

    def _take_apart(self, track: Track, found: Sorted, lo: int, hi: int, times: Ids) -> None:
        """Records from before the exchange started over are judged by the ids of that time."""
        previous = track.previous
        assert previous is not None
        old = times[lo:hi] <= previous.last_us
        edges = [lo, *(np.flatnonzero(old[1:] != old[:-1]) + lo + 1).tolist(), hi]
        for start, stop in itertools.pairwise(edges):
            if old[start - lo]:
                previous.take(found, track.symbol, start, stop)
            else:
                top = int(times[start:stop].max())
                self._take_run(track, found, start, stop, int(times[start]), top)

    def _take_run(
        self, track: Track, found: Sorted, lo: int, hi: int, time: int, latest: int
    ) -> None:
        current = track.current
        fell = self.policy is not Policy.SET and found.ids[lo] < current.high // 2
        if fell and time > current.last_us + RESET_AFTER_US:
            found.resets += 1
            track.resets += 1
            track.previous, track.mark, track.forgotten = current, None, -1
            track.current = current = self.generation()
        current.take(found, track.symbol, lo, hi)
        current.last_us = max(current.last_us, latest)

    @staticmethod
    def _touch(tracks: list[Track], codes: npt.NDArray[np.int32], offsets: Ids) -> None:
        last = np.append(np.flatnonzero(np.diff(codes)), len(codes) - 1)
        for code, offset in zip(codes[last].tolist(), offsets[last].tolist(), strict=True):
            tracks[code].last_offset = offset


def _by_code(codes: npt.NDArray[np.int32], names: int) -> npt.NDArray[np.intp]:
    """The stable order that brings equal codes together."""
    # 16 bits sort by radix, several times faster.
    narrow: npt.NDArray[Any] = codes.astype(np.uint16) if names <= 65_536 else codes
    return np.argsort(narrow, kind="stable")


def _cut(
    policy: Policy, found: Sorted, codes: npt.NDArray[np.int32], times: Ids
) -> npt.NDArray[np.intp]:
    """Where runs start.

    A run ends with its symbol, where its ids leave the feed's order, where the session changes,
    and where time jumps so far that a record might start the ids over, or be from before that.
    """
    steps = np.diff(found.ids)
    broken = steps <= 0 if policy is Policy.RISING else steps != 1
    broken |= codes[1:] != codes[:-1]
    broken |= np.abs(np.diff(times)) > RESET_AFTER_US
    if found.sessions is not None and len(found.session_names) > 1:
        broken |= found.sessions[1:] != found.sessions[:-1]
    if found.backfill is not None:
        broken |= found.backfill[1:] != found.backfill[:-1]
    return np.concatenate(([0], np.flatnonzero(broken) + 1))


def _result(found: Sorted, keep: Mask, rows: Rows, order: npt.NDArray[np.intp]) -> Result:
    kept = int(np.count_nonzero(keep))
    counts = Counts(
        ok=kept - found.late,
        late=found.late,
        duplicates=len(keep) - kept,
        small_gaps=found.small_gaps,
        large_gaps=found.large_gaps,
        resets=found.resets,
    )
    return Result(keep, counts, list(_events(found, rows, order)))


def _events(found: Sorted, rows: Rows, order: npt.NDArray[np.intp]) -> Iterator[GapEvent]:
    # Opened before closed: one record may do both, and what it closes was missing.
    told = [
        (int(rows.offsets[order[row]]), 0, first, last, symbol, "jump", row)
        for symbol, first, last, row in found.opened
    ]
    told += [
        (int(rows.offsets[order[row]]), 1, first, last, symbol, how, row)
        for symbol, first, last, row, how in _joined(found.closed)
    ]
    before, ordinal = -1, 0
    for offset, kind, first, last, symbol, how, row in sorted(told):
        ordinal = ordinal + 1 if offset == before else 0
        before = offset
        event = ("opened", "closed")[kind]
        detected = int(rows.receive_us[order[row]])
        yield GapEvent(symbol, event, first, last, how, offset, ordinal, detected)


def _joined(
    closed: list[tuple[str, int, int, int, bool]],
) -> Iterator[tuple[str, int, int, int, str]]:
    """Adjacent closed ranges as one, told by the newest of their records."""
    pending: list[Any] = []
    for symbol, first, last, row, filled in sorted(closed):
        if pending and pending[0] == symbol and pending[4] == filled and pending[2] + 1 == first:
            # Rows of one symbol are in the order of the log.
            pending[2], pending[3] = last, max(pending[3], row)
            continue
        if pending:
            yield (*pending[:4], "backfill" if pending[4] else "late")
        pending = [symbol, first, last, row, filled]
    if pending:
        yield (*pending[:4], "backfill" if pending[4] else "late")
