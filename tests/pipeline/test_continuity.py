"""Continuity against a slow model, and the promises it is built for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2.pipeline import checkpoint
from k2.pipeline.continuity import RESET_AFTER_US, Continuity, Counts, Policy
from k2.pipeline.intervals import IntervalSet
from tests.pipeline.continuity_parts import Seed, open_after, rows, run, trades

HOUR = RESET_AFTER_US


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
        self.seen, self.gaps, self.last = set(), set(), -HOUR * 10
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
        if self.seen:
            # All between known ids that is not known is a gap, whichever came first.
            low, high = min(*self.seen, id_), max(*self.seen, id_)
            missing = set(range(low, high)) - self.seen - self.gaps - {id_}
            self.gaps |= missing
            events += [("opened", "jump", i) for i in missing]
        if id_ in self.gaps:
            self.gaps.remove(id_)
            events.append(("closed", "backfill" if fill else "late", id_))
        late = new and bool(self.seen) and id_ < max(self.seen)
        self.seen.add(id_)
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


def test_what_lies_between_two_runs_is_a_gap_whichever_came_first():
    one, other = range(101, 151), range(301, 351)
    for log in ((*one, *other), (*other, *one)):
        continuity = Continuity(Policy.CONTIGUOUS)
        _, events, _ = run(continuity, trades(*log), cuts=[7, 60])
        assert list(continuity.tracks["A"].current.gaps) == [(151, 300)]
        assert open_after(events) == set(range(151, 301))
    # Each record closed the hole in front of it: 102 to 150 came after all.
    assert [e[:4] for e in events[:2]] == [
        ("A", "opened", 102, 300),
        ("A", "closed", 102, 110),
    ]


def test_a_late_run_that_skips_shows_the_hole_it_leaves():
    continuity = Continuity(Policy.CONTIGUOUS)
    _, events, _ = run(continuity, [*trades(301), *trades(10, 12), *trades(302)])
    assert list(continuity.tracks["A"].current.gaps) == [(11, 11), (13, 300)]
    assert open_after(events) == {11, *range(13, 301)}


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), min_size=1, max_size=10),
    st.lists(st.integers(0, 90), max_size=6),
    st.lists(st.tuples(st.integers(0, 80), st.integers(1, 9)), max_size=4),
)
@settings(max_examples=300, deadline=None)
def test_what_is_open_is_what_lies_between_known_ids(runs, cuts, stored):
    """Whatever order runs come in, with or without ids in the lake."""
    log = [i for first, size in runs for i in range(first, first + size)]
    lake = {i for first, size in stored for i in range(first, first + size)}
    held = IntervalSet.from_ids(sorted(lake))
    seeds = {"A": Seed(*held.arrays())} if lake else {}
    continuity = Continuity(Policy.CONTIGUOUS, seed=Lake(**seeds))
    keep, events, _ = run(continuity, trades(*log), [min(cut, len(log)) for cut in cuts])
    known = lake | set(log)
    # What is missing between ids of the lake was told by the log that left it out.
    told_before = set(range(min(lake), max(lake))) if lake else set()
    between = set(range(min(known), max(known))) - known
    assert open_after(events) == between - told_before
    assert {i for i, kept in zip(log, keep, strict=True) if kept} == set(log) - lake
    assert sum(keep) == len(set(log) - lake)


def test_one_record_may_open_and_close():
    continuity = Continuity(Policy.CONTIGUOUS)
    run(continuity, [*trades(100, 200), *trades(20)])
    result = continuity.apply(rows(trades(150, 50, 10), at=3))
    assert [(e.event, e.first_id, e.last_id, e.log_offset) for e in result.events] == [
        ("closed", 150, 150, 3),
        ("closed", 50, 50, 4),
        ("opened", 11, 19, 5),
    ]


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


def two_generations():
    """A lake with ids 1000 to 1100, and after an hour and more 1 to 50."""
    newest = seed((1, 50), last=3 * HOUR)
    newest.older = (seed((1_000, 1_100), last=1_000),)
    return newest


@pytest.mark.parametrize("policy", [Policy.CONTIGUOUS, Policy.RISING])
def test_ids_that_started_over_hide_no_later_ones(policy):
    continuity = Continuity(policy, seed=Lake(A=two_generations()))
    # They reach the ids of the first time again; all are new.
    later = trades(*range(51, 1_200), time=4 * HOUR)
    keep, events, counts = run(continuity, later, cuts=[500])
    assert all(keep)
    assert (events, counts[5]) == ([], 0)
    again = [*trades(*range(1_000, 1_101)), *trades(*range(1, 51), time=3 * HOUR)]
    result = continuity.apply(rows(again, at=len(later)))
    assert not result.keep.any(), "a replay of what the lake has adds nothing"


def test_ids_that_start_over_once_more_keep_their_own_lake():
    lake = Lake(A=two_generations())
    continuity = Continuity(Policy.CONTIGUOUS, seed=lake)
    run(continuity, [*trades(51, 52, time=4 * HOUR), *trades(1, 2, time=6 * HOUR)])
    track = continuity.tracks["A"]
    assert (track.resets, list(track.current.seen)) == (2, [(1, 2)])
    again = Continuity(Policy.CONTIGUOUS, seed=lake)
    checkpoint.load(again, checkpoint.decode(checkpoint.encode(continuity, "e", 4)))
    # A restarted process asks the lake again, which still has two generations.
    log = [*trades(30, 52, 53, time=4 * HOUR), *trades(2, 3, 30, time=6 * HOUR)]
    result = again.apply(rows(log, at=4))
    assert result.keep.tolist() == [False, False, True, False, True, True]


def test_a_restart_keeps_the_lakes_generations_apart():
    lake = Lake(A=two_generations())
    continuity = Continuity(Policy.CONTIGUOUS, seed=lake)
    run(continuity, trades(51, time=4 * HOUR))
    again = Continuity(Policy.CONTIGUOUS, seed=lake)
    checkpoint.load(again, checkpoint.decode(checkpoint.encode(continuity, "e", 1)))
    log = [*trades(50, 51, 52, time=4 * HOUR), *trades(1_050, 1_101)]
    result = again.apply(rows(log, at=1))
    assert result.keep.tolist() == [False, False, True, False, True]
    assert again.trim(stored_through=10).symbols == 0


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
