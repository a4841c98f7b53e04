"""Columns against aiokafka's own objects, and everything a log can hold besides records."""

import numpy as np
import pytest
from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition
from faust.types import TP
from hypothesis import given, settings
from hypothesis import strategies as st

from k2.errors import LogCorruptError, LogError
from k2.transport.unpack import split
from tests.transport.records import TRANSACTIONAL, control, encode

PLACE = TP("t", 3)


def cut(raw, *, position=0, highwater=10_000, max_records=1_000, **options):
    return split(
        PLACE,
        MemoryRecords(raw),
        position=position,
        highwater=highwater,
        max_records=max_records,
        **options,
    )


def offsets_of(pieces):
    return [offset for piece in pieces for offset in piece.unpack().offsets.tolist()]


@st.composite
def logs(draw):
    """Record batches in a row, with holes inside and between them, as compaction leaves them."""
    base, raw = draw(st.integers(0, 5)), b""
    for _ in range(draw(st.integers(1, 6))):
        span = draw(st.integers(1, 12))
        kept = draw(st.sets(st.integers(0, span - 1), min_size=1))
        offsets = [base + delta for delta in sorted(kept)]
        raw += encode(
            base,
            offsets,
            keys=[draw(st.none() | st.binary(max_size=4)) for _ in offsets],
            values=[draw(st.none() | st.binary(max_size=9)) for _ in offsets],
            timestamps=[draw(st.integers(0, 2**40)) for _ in offsets],
            headers=[
                draw(st.lists(st.tuples(st.text(max_size=3), st.binary(max_size=3)), max_size=2))
                for _ in offsets
            ],
            codec=draw(st.sampled_from([0, 1, 2, 3, 4])),
            last=base + span - 1,
        )
        base += span + draw(st.sampled_from([0, 0, 3]))
    return raw, base


@given(logs(), st.integers(0, 40), st.integers(1, 20))
@settings(max_examples=200, deadline=None)
def test_agrees_with_aiokafka(log, position, max_records):
    raw, _ = log
    pieces = cut(raw, position=position, max_records=max_records)
    batches = [piece.unpack() for piece in pieces]
    theirs = PartitionRecords(
        TopicPartition("t", 3), MemoryRecords(raw), [], position, None, None, True, 0
    )
    # A record batch wholly below the position moves aiokafka's back; no broker sends one first.
    expected = [record for record in theirs if record.offset >= position]
    assert [o for b in batches for o in b.offsets.tolist()] == [r.offset for r in expected]
    assert [v for b in batches for v in b.values] == [r.value for r in expected]
    assert [k for b in batches for k in b.keys] == [r.key for r in expected]
    assert [t for b in batches for t in b.timestamps_ms.tolist()] == [r.timestamp for r in expected]
    headers = [b.headers.get(row, ()) for b in batches for row in range(len(b))]
    assert headers == [r.headers for r in expected]


@given(logs(), st.integers(0, 40), st.integers(1, 20))
@settings(max_examples=200, deadline=None)
def test_pieces_abut_from_the_position_to_the_end(log, position, max_records):
    raw, _ = log
    at = position
    for piece in cut(raw, position=position, max_records=max_records):
        assert piece.first_offset == at
        assert piece.last_offset >= piece.first_offset
        assert len(piece.batches) == 1 or len(piece.unpack()) <= max_records
        at = piece.last_offset + 1


def test_a_record_batch_is_never_cut():
    raw = encode(0, range(50)) + encode(50, range(50, 60)) + encode(60, range(60, 70))
    pieces = cut(raw, max_records=20)
    assert [(p.first_offset, p.last_offset) for p in pieces] == [(0, 49), (50, 69)]


def test_a_position_inside_a_batch_skips_what_is_below():
    batch = cut(encode(10, range(10, 20)), position=14)[0].unpack()
    assert batch.offsets.tolist() == list(range(14, 20))
    assert batch.values[0] == b"v14"
    assert (batch.first_offset, batch.last_offset) == (14, 19)


def test_headers_are_sparse_and_keep_their_row():
    raw = encode(0, range(3), headers=[[], [("a", b"1"), ("a", b"2")], []])
    assert cut(raw + encode(3, [3], headers=[[("b", b"")]]))[0].unpack().headers == {
        1: (("a", b"1"), ("a", b"2")),
        3: (("b", b""),),
    }


def test_an_incomplete_batch_at_the_end_is_left_for_the_next_fetch():
    raw = encode(0, range(5)) + encode(5, range(5, 9))[:-1]
    assert [p.last_offset for p in cut(raw)] == [4]


def test_control_batches_count_but_carry_nothing():
    raw = encode(0, range(3)) + control(3, 7, abort=False) + control(4, 7, abort=False)
    (piece,) = cut(raw)
    assert piece.last_offset == 4
    assert len(piece.unpack()) == 3
    (only,) = cut(control(3, 7, abort=False), position=3)
    empty = only.unpack()
    assert len(empty) == 0
    assert (empty.first_offset, empty.last_offset) == (3, 3)
    assert empty.offsets.dtype == np.int64


def test_aborted_transactions_are_skipped_by_readers_of_committed_records():
    raw = (
        encode(0, range(3), attributes=TRANSACTIONAL, producer_id=7)
        + encode(3, range(3, 5), attributes=TRANSACTIONAL, producer_id=8)
        + control(5, 7, abort=True)
        + encode(6, [6], attributes=TRANSACTIONAL, producer_id=7)
        + control(7, 8, abort=False)
        + encode(8, [8])
    )
    assert offsets_of(cut(raw, aborted=[(7, 0)])) == [3, 4, 6, 8]
    assert offsets_of(cut(raw)) == [0, 1, 2, 3, 4, 6, 8]
    expected = PartitionRecords(
        TopicPartition("t", 3), MemoryRecords(raw), [(7, 0)], 0, None, None, True, READ_COMMITTED
    )
    assert [record.offset for record in expected] == [3, 4, 6, 8]


def test_a_damaged_batch_is_refused_unless_checksums_are_off():
    raw = bytearray(encode(40, range(40, 43)))
    raw[-2] ^= 0xFF  # inside the last value
    with pytest.raises(LogCorruptError, match=r"t\[3\].*offset 40"):
        cut(bytes(raw))[0].unpack()
    assert len(cut(bytes(raw), check_crcs=False)[0].unpack()) == 3


def test_bytes_that_are_no_records_are_refused():
    raw = bytearray(encode(0, range(3)))
    raw[61] = 0x7F  # length of the first record
    with pytest.raises(LogCorruptError, match="damaged"):
        cut(bytes(raw), check_crcs=False)[0].unpack()


@pytest.mark.parametrize("magic", [0, 1])
def test_old_message_sets_are_refused(magic):
    builder = LegacyRecordBatchBuilder(magic=magic, compression_type=0, batch_size=1_000)
    builder.append(0, timestamp=1, key=b"k", value=b"v", headers=[])
    with pytest.raises(LogError, match="v0 or v1"):
        cut(bytes(builder.build()))


def test_an_empty_answer_gives_nothing():
    assert cut(b"") == []
