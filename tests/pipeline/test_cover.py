"""Covers: whatever is written again, cut or left out, a reader applies each offset once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2.errors import CoverHoleError, DecodeError
from k2.pipeline.cover import COVER_HEADER, Cover, CoverReader
from k2.transport.batch import LogBatch

EPOCH = "6f2c3f5e-8a43-4f63-9d0a-8f1f0a1c2b3d"
OTHER = "11111111-2222-4333-8444-555555555555"

ranges = st.tuples(st.integers(0, 2**40), st.integers(0, 300)).map(lambda r: (r[0], r[0] + r[1]))


def written(covers, at=0, payload=b"%d"):
    """The log a writer of `covers` leaves: one record per kept offset, valued by it."""
    values, headers = [], {}
    for cover in covers:
        headers[len(values)] = ((COVER_HEADER, cover.to_bytes()),)
        values += [payload % k for k in cover.kept.tolist()] or [None]
    count = len(values)
    return LogBatch(
        topic="market.crypto.trades.binance.validated",
        partition=3,
        offsets=np.arange(at, at + count, dtype=np.int64),
        timestamps_ms=np.zeros(count, np.int64),
        keys=[None] * count,
        values=values,
        headers=headers,
        first_offset=at,
        last_offset=at + count - 1,
        highwater=at + count,
    )


def cover(first, last, kept, epoch=EPOCH):
    return Cover(epoch, first, last, np.array(kept, np.int64))


def reader(**options):
    return CoverReader("market.crypto.trades.binance.validated", 3, **options)


def applied(reader_, batch):
    rows = []
    for group in reader_.read(batch):
        assert [batch.values[row] for row in range(group.start, group.stop)] == [
            b"%d" % sequence for sequence in group.sequences.tolist()
        ]
        rows += group.sequences.tolist()
    return rows


@given(ranges, st.data())
def test_a_header_comes_back(bounds, data):
    first, last = bounds
    kept = sorted(data.draw(st.lists(st.integers(first, last), max_size=40)))
    again = Cover.from_bytes(cover(first, last, kept).to_bytes())
    assert (again.epoch, again.first, again.last) == (EPOCH, first, last)
    assert again.kept.tolist() == kept


@given(st.binary(max_size=120))
def test_any_bytes_are_a_cover_or_an_error(raw):
    try:
        again = Cover.from_bytes(raw)
    except DecodeError:
        return
    assert len(again.kept) <= max(0, again.last - again.first + 1) * len(raw)


@given(ranges, st.data())
def test_a_damaged_header_is_a_cover_or_an_error(bounds, data):
    first, last = bounds
    kept = sorted(data.draw(st.sets(st.integers(first, last), max_size=20)))
    raw = bytearray(cover(first, last, kept).to_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        again = Cover.from_bytes(bytes(raw))
    except DecodeError:
        return
    assert len(again.kept) == 0 or again.first <= again.kept[0] <= again.kept[-1] <= again.last


@st.composite
def histories(draw):
    """What a writer with crashes leaves: from a checkpoint on, groups are cut anew."""
    end = draw(st.integers(1, 30))
    survivors = draw(st.sets(st.integers(0, end)))
    groups, reached = [], 0
    for crashes in range(5):
        at = draw(st.integers(0, min(reached, end)))
        stop = end if crashes == 4 else draw(st.integers(at, end))
        while at <= stop:
            last = min(stop, at + draw(st.integers(0, 20)))
            groups.append(cover(at, last, [k for k in sorted(survivors) if at <= k <= last]))
            at = last + 1
        reached = max(reached, at)
    return groups, sorted(survivors)


@given(histories(), st.data())
@settings(max_examples=300, deadline=None)
def test_each_survivor_is_applied_once_in_order_however_often_it_was_written(history, data):
    groups, survivors = history
    ours, got = reader(), []
    offset = 0
    while groups:
        taken = data.draw(st.integers(1, len(groups)))
        batch = written(groups[:taken], offset)
        got += applied(ours, batch)
        offset += len(batch)
        groups = groups[taken:]
    assert got == survivors


@given(histories(), st.data())
@settings(max_examples=200, deadline=None)
def test_a_reader_resumed_at_any_group_goes_on_where_it_was(history, data):
    groups, survivors = history
    batch = written(groups)
    ours, got, resume = reader(), [], 0
    stop = data.draw(st.integers(0, len(groups)))
    for number, group in enumerate(ours.read(batch)):
        if number == stop:
            break
        got += group.sequences.tolist()
        resume, position = group.next_offset, group.last
    heads = sorted(batch.headers)
    rest = [g for g, head in zip(groups, heads, strict=True) if head >= resume]
    again = reader(applied={EPOCH: position} if resume else {})
    got += applied(again, written(rest, resume))
    assert got == survivors


def test_a_hole_stops_a_strict_reader_where_it_is_and_no_other():
    batch = written([cover(0, 4, [1]), cover(6, 9, [7])])
    ours = reader()
    with pytest.raises(CoverHoleError, match=r"6\.\.9 does not abut offset 4"):
        list(ours.read(batch))
    assert ours.applied == {EPOCH: 4}
    assert applied(reader(strict=False), batch) == [1, 7]


def test_incarnations_are_told_apart_also_when_an_old_writer_is_late():
    ours = reader()
    batch = written(
        [
            cover(0, 4, [1]),
            cover(0, 2, [0, 2], OTHER),
            cover(3, 6, [3, 5, 6]),
            cover(3, 3, [3], OTHER),
        ]
    )
    assert applied(ours, batch) == [1, 0, 2, 5, 6, 3]
    assert ours.applied == {EPOCH: 6, OTHER: 3}


def test_a_group_says_where_its_headers_are_and_what_was_applied_before():
    ours = reader(applied={EPOCH: 2})
    groups = list(ours.read(written([cover(0, 4, [1, 3]), cover(5, 5, [])])))
    assert [(g.head, g.after, g.last, g.start, g.stop) for g in groups] == [
        (0, 2, 4, 1, 2),
        (2, 4, 5, 2, 2),
    ]


def test_events_of_one_record_share_its_offset():
    assert applied(
        reader(applied={EPOCH: 3}, strict=False), written([cover(0, 9, [3, 3, 5, 5])])
    ) == [
        5,
        5,
    ]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda batch: batch.headers.clear(),
        lambda batch: batch.headers.update({1: batch.headers.pop(0)}),
        lambda batch: batch.values.append(b"9"),
    ],
)
def test_records_of_no_group_are_refused(spoil):
    batch = written([cover(0, 4, [1, 2])])
    spoil(batch)
    with pytest.raises(DecodeError):
        list(reader().read(batch))


def test_a_record_in_a_group_of_none_is_refused():
    batch = written([cover(0, 4, [])])
    batch.values[0] = b"1"
    with pytest.raises(DecodeError, match="header lists 0"):
        list(reader().read(batch))


def test_two_readers_of_a_batch_parse_its_headers_once(monkeypatch):
    batch = written([cover(0, 4, [0, 2]), cover(5, 9, []), cover(10, 12, [11, 12])])
    parsed = []
    parse = Cover.from_bytes
    monkeypatch.setattr(Cover, "from_bytes", lambda raw: parsed.append(raw) or parse(raw))
    assert applied(reader(), batch) == [0, 2, 11, 12]
    assert applied(reader(applied={EPOCH: 10}), batch) == [11, 12]
    assert len(parsed) == 3
