"""Continuity against a slow model, and the promises it is built for."""

import gzip
import itertools
import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2.pipeline.continuity import RESET_AFTER_US, Continuity, Counts, Policy, Rows
from k2.pipeline.intervals import IntervalSet
from tests.data import BTC_0808, BTC_0809, require

HOUR = RESET_AFTER_US


@dataclass
class Seed:
    starts: np.ndarray
    ends: np.ndarray
    last_timestamp_us: int = 0


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


def told(events, what):
    """Ids per (symbol, how) of the events of one kind: the same however ranges are coalesced."""
    return sorted(
        (e.symbol, e.how, i)
        for e in events
        if e.event == what
        for i in range(e.first_id, e.last_id + 1)
    )


class Model:
    """One contiguous symbol, record by record, with plain sets."""

    def __init__(self):
        self.seen, self.gaps, self.at, self.last = set(), set(), None, -HOUR * 10
        self.old = None

    def take(self, id_, time, fill):
        if self.old is not None and time <= self.old.last:
            return self.old.judge(id_, fill)
        if time > self.last + HOUR and self.seen and id_ < max(self.seen) // 2:
            old = Model()
            old.__dict__.update(self.__dict__)
            self.__init__()
            self.old = old
        self.last = max(self.last, time)
        return self.judge(id_, fill)

    def judge(self, id_, fill):
        new, events = id_ not in self.seen, []
        if new and self.at is not None and id_ > self.at + 1:
            i = id_ - 1
            while i not in self.seen:
                if i not in self.gaps:
                    self.gaps.add(i)
                    events.append(("opened", "jump", i))
                i -= 1
        if id_ in self.gaps:
            self.gaps.remove(id_)
            events.append(("closed", "backfill" if fill else "late", id_))
        late = new and bool(self.seen) and id_ < max(self.seen)
        self.seen.add(id_)
        self.at = id_
        return new, late, events


times = st.integers(0, 40).map(lambda t: t * HOUR // 4)
record = st.tuples(st.sampled_from("AB"), st.integers(0, 40), times, st.booleans())
#: Mostly in order: runs with their incidents are what a feed is made of.
piece = st.one_of(
    st.lists(record, max_size=6),
    st.builds(
        lambda s, first, n, t, f: [(s, i, t, f) for i in range(first, first + n)],
        st.sampled_from("AB"),
        st.integers(0, 60),
        st.integers(1, 20),
        times,
        st.booleans(),
    ),
)
logs = st.lists(piece, max_size=12).map(lambda pieces: [r for p in pieces for r in p])


@given(logs, st.data())
@settings(max_examples=300, deadline=None)
def test_contiguous_like_the_model_wherever_batches_are_cut(log, data):
    cuts = data.draw(st.lists(st.integers(0, len(log)), max_size=8))
    keep, events, counts = run(Continuity(Policy.CONTIGUOUS), log, cuts)
    models = {"A": Model(), "B": Model()}
    judged = [(r[0], *models[r[0]].take(*r[1:])) for r in log]
    assert keep == [new for _, new, _, _ in judged]
    assert counts[2] == keep.count(False)
    assert counts[1] == sum(late for _, _, late, _ in judged)
    for what in ("opened", "closed"):
        expected = sorted((s, e[1], e[2]) for s, _, _, es in judged for e in es if e[0] == what)
        assert told(events, what) == expected


rising_record = st.tuples(
    st.sampled_from("AB"),
    st.integers(0, 60),
    times,
    st.just(False),
    st.sampled_from([None, None, None, b"s1", b"s2"]),
)
rising_piece = st.one_of(
    st.lists(rising_record, max_size=6),
    st.builds(
        lambda s, ids, t, session: [
            (s, i, t, False, session if n == 0 else None) for n, i in enumerate(sorted(ids))
        ],
        st.sampled_from("AB"),
        st.sets(st.integers(0, 90), min_size=1, max_size=20),
        times,
        st.sampled_from([None, b"s1", b"s2"]),
    ),
)
rising_logs = st.lists(rising_piece, max_size=12).map(lambda ps: [r for p in ps for r in p])


@given(rising_logs, st.integers(1, 8), st.data())
@settings(max_examples=300, deadline=None)
def test_rising_is_the_same_wherever_batches_are_cut(log, window, data):
    cuts = data.draw(st.lists(st.integers(0, len(log)), max_size=8))
    one_by_one = Continuity(Policy.RISING, window=window)
    in_pieces = Continuity(Policy.RISING, window=window)
    expected = run(one_by_one, log, range(1, len(log)))
    assert run(in_pieces, log, cuts) == expected
    for symbol, track in one_by_one.tracks.items():
        other = in_pieces.tracks[symbol].current
        assert (track.current.seen, track.current.at) == (other.seen, other.at)
        assert track.current.floor == other.floor
        assert list(track.current.recent) == list(other.recent)


@given(rising_logs)
@settings(max_examples=200, deadline=None)
def test_rising_keeps_each_id_at_most_once_and_drops_none_in_order(log):
    one_time = [(*r[:2], 0, *r[3:]) for r in log]
    keep, events, counts = run(Continuity(Policy.RISING), one_time)
    seen = {}
    for record_, kept in zip(one_time, keep, strict=True):
        symbol, id_ = record_[:2]
        ids = seen.setdefault(symbol, set())
        # The window is larger than the log: all it drops must have been seen, and the reverse.
        assert kept == (id_ not in ids)
        ids.add(id_)
    assert not events
    assert counts[3:5] == [0, 0]


def test_a_jump_is_a_gap_once_and_late_records_close_it():
    continuity = Continuity(Policy.CONTIGUOUS)
    _, events, counts = run(continuity, trades(1, 2, 3, 7, 8))
    assert [e[:5] for e in events] == [("A", "opened", 4, 6, "jump")]
    assert (events[0].log_offset, events[0].detected_at_us) == (3, 1_005)
    assert counts == [5, 0, 0, 1, 0, 0]
    result = continuity.apply(rows([*trades(5), *trades(6, 4, backfill=True), *trades(9)], at=5))
    assert [(e.event, e.first_id, e.last_id, e.how, e.log_offset) for e in result.events] == [
        ("closed", 5, 5, "late", 5),
        ("closed", 6, 6, "backfill", 6),
        ("closed", 4, 4, "backfill", 7),
    ]
    assert result.counts == Counts(ok=1, late=3)
    assert len(continuity.tracks["A"].current.gaps) == 0
    assert list(continuity.tracks["A"].current.seen) == [(1, 9)]


def test_late_ids_are_closed_in_one_range_per_batch_whatever_their_order():
    continuity = Continuity(Policy.CONTIGUOUS)
    run(continuity, trades(1, 20))
    result = continuity.apply(rows(trades(12, 5, 4, 13, 6), at=2))
    assert [(e.first_id, e.last_id, e.log_offset, e.ordinal) for e in result.events] == [
        (12, 13, 5, 0),
        (4, 6, 6, 0),
    ]


def test_eleven_missing_ids_are_a_large_gap():
    assert run(Continuity(Policy.CONTIGUOUS), trades(1, 12, 24))[2] == [3, 0, 0, 1, 1, 0]


def test_a_first_id_and_a_late_run_below_everything_open_no_gap():
    _, events, counts = run(
        Continuity(Policy.CONTIGUOUS), [*trades(301, 302), *trades(101, 102), *trades(303)]
    )
    assert events == []
    assert counts[:3] == [3, 2, 0]


def test_what_a_late_run_skips_is_a_gap_too():
    _, events, _ = run(Continuity(Policy.CONTIGUOUS), [*trades(301), *trades(10, 12), *trades(302)])
    assert [e[:5] for e in events] == [("A", "opened", 11, 11, "jump")]


def test_one_record_may_open_and_close():
    continuity = Continuity(Policy.CONTIGUOUS)
    # 21..100 is not known to be missing (nobody jumped over it), 101..199 is.
    run(continuity, [*trades(100, 200), *trades(20)])
    result = continuity.apply(rows(trades(150), at=3))
    assert [(e.event, e.first_id, e.last_id, e.ordinal) for e in result.events] == [
        ("closed", 150, 150, 0)
    ]
    result = continuity.apply(rows([*trades(50)], at=4))
    assert result.events == []
    result = continuity.apply(rows([*trades(60)], at=5))
    assert [(e.event, e.first_id, e.last_id) for e in result.events] == [("opened", 51, 59)]


def test_a_fall_with_a_time_jump_starts_the_ids_over():
    continuity = Continuity(Policy.CONTIGUOUS)
    log = [
        *trades(1_000, 1_001),
        *trades(1, 2, time=1_001 + HOUR),
        *trades(1_002, time=900),  # late, of the old ids
        *trades(1_001, time=900),
        *trades(2, 3, time=1_001 + HOUR),
    ]
    keep, events, counts = run(continuity, log)
    assert keep == [True, True, True, True, True, False, False, True]
    assert events == []
    assert counts == [6, 0, 2, 0, 0, 1]


def test_a_fall_alone_and_a_pause_alone_do_not():
    _, _, counts = run(
        Continuity(Policy.CONTIGUOUS),
        [*trades(1_000), *trades(1, time=1_000), *trades(1_001, time=HOUR * 9)],
    )
    assert counts[5] == 0


class Lake:
    """A seeder that notes what it was asked."""

    def __init__(self, **seeds):
        self.seeds, self.asked = seeds, []

    def __call__(self, symbols, own_before):
        self.asked.append((sorted(symbols), own_before))
        return {s: self.seeds[s] for s in symbols if s in self.seeds}


def seed(*runs, last=1_000):
    starts, ends = zip(*runs, strict=True)
    return Seed(np.array(starts), np.array(ends), last)


def test_ids_in_the_lake_are_duplicates_and_a_jump_beyond_them_is_a_gap():
    lake = Lake(A=seed((1, 5), (8, 10)))
    continuity = Continuity(Policy.CONTIGUOUS, seed=lake)
    keep, events, _ = run(continuity, trades(1, 2, 3, 4, 5, 8, 9, 10, 11, 15), cuts=[3])
    assert keep == [False] * 8 + [True, True]
    assert [e[:5] for e in events] == [("A", "opened", 12, 14, "jump")]
    assert lake.asked == [(["A"], None)]
    # What the lake lacks inside its ids is closed when it comes.
    _, events, _ = run(continuity, trades(6, 7))
    assert [e[:5] for e in events] == [("A", "closed", 6, 7, "late")]


def test_a_replay_of_what_the_lake_has_adds_nothing():
    lake = Lake(A=seed((1, 50), (60, 99)))
    keep, events, counts = run(
        Continuity(Policy.CONTIGUOUS, seed=lake), trades(*range(1, 51), *range(60, 100))
    )
    assert not any(keep)
    assert events == []
    assert counts == [0, 0, 90, 0, 0, 0]


def test_the_first_record_beyond_the_lake_opens_a_gap():
    lake = Lake(A=seed((1, 50)))
    _, events, _ = run(Continuity(Policy.CONTIGUOUS, seed=lake), trades(53))
    assert [e[:5] for e in events] == [("A", "opened", 51, 52, "jump")]


def test_rising_seeds_are_exact():
    lake = Lake(A=seed((10, 10), (14, 14), (20, 20)))
    keep, _, _ = run(
        Continuity(Policy.RISING, seed=lake), [("A", i, 0) for i in (10, 14, 17, 20, 25)]
    )
    assert keep == [False, False, True, False, True]


def test_rising_ids_lost_between_sessions_are_accepted_when_replayed():
    continuity = Continuity(Policy.RISING, window=4)
    log = [
        ("A", 10, 0, False, b"s1"),
        ("A", 14, 0),
        ("A", 30, 0, False, b"s2"),
        ("A", 34, 0),
        ("A", 40, 0),
        ("A", 50, 0),
        ("A", 60, 0),
        ("A", 20, 0, False, b"s3"),
        ("A", 12, 0),
        ("A", 32, 0),
    ]
    keep, _, counts = run(continuity, log)
    # 20 was lost between s1 and s2; 12 and 32 were inside a session and never existed.
    assert keep == [True] * 8 + [False, False]
    assert counts == [7, 1, 2, 0, 0, 0]


def test_rising_a_slightly_reordered_id_is_late_not_a_duplicate():
    continuity = Continuity(Policy.RISING)
    keep, _, counts = run(continuity, [("A", i, 0) for i in (10, 14, 12, 16, 12, 14)])
    assert keep == [True, True, True, True, False, False]
    assert counts == [3, 1, 2, 0, 0, 0]


def test_without_ids_everything_passes():
    assert run(Continuity(Policy.NONE), trades(1, 1, 0))[0] == [True, True, True]


def test_an_evicted_symbol_comes_back_with_the_lakes_ids():
    lake = Lake()
    continuity = Continuity(Policy.CONTIGUOUS, seed=lake, max_symbols=1)
    run(continuity, [*trades(1, 2, 3), *trades(1, 2, symbol="B")])
    # Not in the lake yet: letting go would lose what was seen.
    assert continuity.trim(stored_through=1) == (0, 0, 1)
    assert continuity.trim(stored_through=2) == (1, 0, 0)
    assert list(continuity.tracks) == ["B"]
    lake.seeds["A"] = seed((1, 3))
    result = continuity.apply(rows(trades(3, 4, 6), at=5))
    assert result.keep.tolist() == [False, True, True]
    assert [e[:4] for e in result.events] == [("A", "opened", 5, 5)]
    assert lake.asked[-1] == (["A"], 5)


def test_without_a_lake_to_ask_nothing_is_let_go():
    continuity = Continuity(Policy.CONTIGUOUS, max_symbols=1, max_runs=2)
    run(continuity, [*trades(1, 3, 5, 7), *trades(1, symbol="B")])
    assert continuity.trim(stored_through=100) == (0, 0, 2)
    assert continuity.trim(stored_through=100) == (0, 0, 2)
    assert run(continuity, trades(1, 3, 5, 7))[0] == [False] * 4


def test_forgotten_runs_are_looked_up_in_the_lake():
    lake = Lake()
    continuity = Continuity(Policy.CONTIGUOUS, seed=lake, max_runs=8)
    ids = list(range(0, 40, 2))
    run(continuity, trades(*ids))
    assert continuity.trim(stored_through=10) == (0, 0, 1)
    freed = continuity.trim(stored_through=30)
    assert (freed.runs, freed.over) == (14, 0)
    track = continuity.tracks["A"]
    assert (track.forgotten, len(track.current.seen)) == (26, 6)
    # Above what was forgotten nobody asks the lake.
    continuity.apply(rows(trades(39), at=20))
    assert len(lake.asked) == 1
    lake.seeds["A"] = Seed(np.array(ids), np.array(ids), 0)
    result = continuity.apply(rows(trades(4, 5, 26, 27), at=21))
    assert result.keep.tolist() == [False, True, False, True]
    assert lake.asked[-1] == (["A"], 21)
    assert told(result.events, "closed") == [("A", "late", 5), ("A", "late", 27)]


def test_nothing_changes_when_the_lake_cannot_be_read():
    def broken(symbols, own_before):
        raise OSError("no lake")

    continuity = Continuity(Policy.CONTIGUOUS, seed=broken)
    with pytest.raises(OSError, match="no lake"):
        continuity.apply(rows(trades(1, 2)))
    assert len(continuity) == 0


def capture(path, stream, key):
    records = []
    with gzip.open(path, "rt") as lines:
        for line in lines:
            at, frame = line.split(" ", 1)
            message = json.loads(frame)
            if message.get("stream", "").endswith(stream):
                data = message["data"]
                records.append((data["s"], data[key], data.get("T", int(at) // 10**6) * 1_000))
    return records


@pytest.mark.parametrize("order", [1, -1])
def test_recorded_trades_in_either_order_have_no_gap_and_each_once(order):
    require(BTC_0808, BTC_0809)
    files = [capture(path, "@trade", "t") for path in (BTC_0808, BTC_0809)][::order]
    log = files[0] + files[1] + files[0]
    continuity = Continuity(Policy.CONTIGUOUS)
    keep, events, counts = run(continuity, log, range(997, len(log), 997))
    assert sum(keep) == 19_904
    assert not any(keep[19_904:])
    assert events == []
    assert counts[3:] == [0, 0, 0]
    assert list(continuity.tracks["BTCUSDT"].current.seen) == [(3735683259, 3735703162)]


def test_recorded_quotes_replayed_are_all_duplicates():
    require(BTC_0808)
    log = capture(BTC_0808, "@bookTicker", "u")
    continuity = Continuity(Policy.RISING)
    first = run(continuity, [(*r, False, b"s1" if n == 0 else None) for n, r in enumerate(log)])
    again = run(continuity, [(*r, False, b"s2" if n == 0 else None) for n, r in enumerate(log)])
    assert all(first[0])
    assert not any(again[0])
    assert isinstance(continuity.tracks["BTCUSDT"].current.seen, IntervalSet)
    assert len(continuity.tracks["BTCUSDT"].current.seen) == 1
