"""What is shed is noted exactly, kept in the ledger, and brought once."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2.degradation.deferred import SKIP_RECORDS, Span, emit_deferred, plan
from k2.degradation.ledger import Ledger, LogPlace
from k2.degradation.levels import TIERS_KEPT, Level
from k2.degradation.shed import Shedder, ShedRange, from_header, to_header
from k2.errors import DecodeError
from k2.pipeline.cover import COVER_HEADER, CoverReader
from k2.pipeline.groups import Cut
from k2.topics import BINANCE_TRADES
from k2.transport.batch import LogBatch

EPOCH = "6f2c3f5e-8a43-4f63-9d0a-8f1f0a1c2b3d"
PLACE = LogPlace(EPOCH, BINANCE_TRADES.log, 3)
offset_sets = st.sets(st.integers(0, 300), min_size=1, max_size=60)


def shed(offsets, tier=3):
    return ShedRange.of(*PLACE, tier, np.array(sorted(offsets), np.int64))


@given(offset_sets, st.integers(-1, 301))
def test_a_note_holds_its_offsets(offsets, above):
    one = shed(offsets)
    assert one.offsets().tolist() == sorted(offsets)
    assert (one.first, one.last, one.count) == (min(offsets), max(offsets), len(offsets))
    assert [i for a, b in one.ranges() for i in range(a, b + 1)] == sorted(offsets)
    assert all(b + 1 < c for (_, b), (c, _) in itertools.pairwise(one.ranges()))
    part = one.above(above)
    assert (part.offsets().tolist() if part else []) == sorted(o for o in offsets if o > above)
    assert from_header(to_header([one])) == [one]


def test_damaged_notes_are_refused():
    with pytest.raises(DecodeError, match="k2-shed"):
        from_header(b"\xff")
    with pytest.raises(DecodeError, match="not readable"):
        ShedRange(*PLACE, 3, 0, 4, 2, b"x").offsets()


@pytest.mark.parametrize("level", Level)
def test_levels_keep_the_first_tiers(level):
    tiers = np.array([1, 2, 3, 1], np.int8)
    mask = Shedder().mask(level, tiers)
    kept = tiers if mask is None else tiers[mask]
    assert kept.tolist() == [t for t in tiers.tolist() if t <= TIERS_KEPT[level]]


def replayed(records):
    """A ledger that reads a compacted topic: the newest record of each key, in log order."""
    ledger, newest = Ledger(), {}
    for key, value in records:
        newest.pop(key, None)
        newest[key] = value
    for key, value in newest.items():
        ledger.load(key, value)
    return ledger


def state(ledger):
    return (
        ledger.through(PLACE),
        [s for s in ledger.pending(PLACE) if s.last > ledger.through(PLACE)],
        {key: value for key, value in ledger.entries() if value},
    )


operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), offset_sets, st.integers(1, 3)),
        st.tuples(st.just("resolve"), st.integers(0, 300), st.just(0)),
    ),
    max_size=12,
)


@given(operations)
@settings(deadline=None)
def test_the_ledger_comes_back_from_its_topic_also_when_read_twice(steps):
    ledger, written = Ledger(), []
    for name, what, tier in steps:
        if name == "add":
            written += [entry for entry in [ledger.add(shed(what, tier))] if entry]
        else:
            written += ledger.resolved(PLACE, what)
    assert state(replayed(written)) == state(ledger)
    # Every record, then every record again, as an uncompacted topic read by a restarted worker.
    twice = Ledger()
    for key, value in written * 2:
        twice.load(key, value)
    assert state(twice) == state(ledger)
    pending = sum(s.count for s in ledger.pending(PLACE))
    for one in (ledger, twice):
        assert sum(one.counts(PLACE).values()) == pending
    assert ledger.places() == ([PLACE] if pending else [])


def test_unreadable_records_of_the_ledger_are_refused():
    with pytest.raises(DecodeError, match="shed ledger"):
        Ledger().load(b"shed/x", b"\xc1")


def test_a_plan_joins_near_stretches_and_waits_for_normal():
    ledger = Ledger()
    far = 300 + 2 * SKIP_RECORDS
    for one in (shed({5, 9}), shed({8, 200}, 2), shed({far, far + 4})):
        ledger.add(one)
    assert plan(ledger, PLACE, Level.SOFT) == []
    assert plan(ledger, PLACE, Level.NORMAL) == [Span(5, 200), Span(far, far + 4)]
    ledger.resolved(PLACE, 8)
    assert plan(ledger, PLACE, Level.NORMAL) == [Span(9, 200), Span(far, far + 4)]
    ledger.resolved(PLACE, far + 4)
    assert plan(ledger, PLACE, Level.NORMAL) == []


def log_batch(first, last):
    offsets = np.arange(first, last + 1, dtype=np.int64)
    return LogBatch(
        topic=BINANCE_TRADES.log,
        partition=3,
        offsets=offsets,
        timestamps_ms=offsets + 7,
        keys=[b"k%d" % o for o in offsets],
        values=[b"v%d" % o for o in offsets],
        headers={},
        first_offset=first,
        last_offset=last,
        highwater=1_000,
    )


@given(
    st.lists(st.tuples(offset_sets, st.integers(1, 3)), min_size=1, max_size=4),
    st.data(),
)
@settings(max_examples=150, deadline=None)
def test_whatever_crashes_all_that_was_shed_is_brought_once_in_order(notes, data):
    ledger, taken = Ledger(), set()
    for offsets, tier in notes:
        if offsets - taken:
            ledger.add(shed(offsets - taken, tier))
        taken |= offsets
    reader, got = CoverReader(BINANCE_TRADES.deferred, 3), []
    stored = ledger.entries()
    at = 0
    for _ in range(20):
        ledger = replayed(stored)  # a crash: only what the topic has is known
        spans = plan(ledger, PLACE, Level.NORMAL)
        if not spans:
            break
        span = spans[0]
        first = data.draw(st.integers(max(0, span.first - 5), span.first))
        while first <= span.last:
            last = data.draw(st.integers(first, 305))
            through = ledger.through(PLACE)
            groups, through = emit_deferred(
                log_batch(first, last),
                ledger.pending(PLACE),
                topic=BINANCE_TRADES,
                epoch=EPOCH,
                through=through,
                last=span.last,
                cut=Cut(7, 100_000),
            )
            for group in groups:
                batch = LogBatch(
                    topic=group.topic,
                    partition=3,
                    offsets=np.arange(at, at + len(group.values), dtype=np.int64),
                    timestamps_ms=np.zeros(len(group.values), np.int64),
                    keys=group.keys,
                    values=group.values,
                    headers={0: group.headers},
                    first_offset=at,
                    last_offset=at + len(group.values) - 1,
                    highwater=at + len(group.values),
                )
                at += len(group.values)
                assert group.headers[0][0] == COVER_HEADER
                for new in reader.read(batch):
                    values = batch.values[new.start : new.stop]
                    assert values == [b"v%d" % o for o in new.sequences.tolist()]
                    got += new.sequences.tolist()
            written = ledger.resolved(PLACE, through)
            if data.draw(st.booleans()):
                break  # before the ledger's topic has it
            stored += written
            first = last + 1
        else:
            continue
    else:
        return
    assert got == sorted(taken)
