"""The validate step on real bytes: everything is accounted for once, whatever crashes."""

import itertools
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2.codec.avro import Codec
from k2.codec.registry import FileRegistry
from k2.codec.schemas import schema_text
from k2.degradation.ledger import Ledger, LogPlace, shed_in
from k2.degradation.levels import Level
from k2.degradation.tiers import TierLists, Tiers
from k2.errors import LogCorruptError, RetentionGapError
from k2.pipeline.cover import CoverReader
from k2.pipeline.validate import LaneCodecs, Validator
from k2.records import build, vendor_map
from k2.settings import Validate
from k2.topics import BINANCE_QUOTES, BINANCE_TRADES
from k2.transport.batch import LogBatch

EPOCH = "6f2c3f5e-8a43-4f63-9d0a-8f1f0a1c2b3d"
OTHER = "11111111-2222-4333-8444-555555555555"
NOW = 1_700_000_000_000_000
TIERS = Tiers(TierLists(["BTC"], ["ETH"], ["USDT"]))


class FixedClock:
    def now_us(self):
        return NOW

    def monotonic_s(self):
        return 0.0

    async def sleep(self, seconds):
        raise AssertionError("a pure step does not wait")


@pytest.fixture(scope="module")
def codecs(tmp_path_factory):
    registry = FileRegistry(tmp_path_factory.mktemp("registry"))
    return {
        kind: Codec.open(registry, f"{kind}-value", schema_text(kind))
        for kind in ("trades", "quotes", "gaps", "dlq")
    }


def trade_values(codecs, records):
    """Wire values of (symbol, trade id) trades, a millisecond apart."""
    times = NOW + np.arange(len(records)) * 1_000
    batch = build(
        "trades",
        len(records),
        {
            "message_id": [
                f"BINANCE:{t}:{s}:{i}" for (s, i), t in zip(records, times, strict=True)
            ],
            "trade_id": [str(i) for _, i in records],
            "symbol": [s for s, _ in records],
            "exchange": "BINANCE",
            "asset_class": "crypto",
            "timestamp": times,
            "receive_timestamp": times,
            "ingestion_timestamp": times,
            "price": "61837.63000000",
            "quantity": "0.02000000",
            "currency": "USDT",
            "side": "BUY",
            "vendor_data": vendor_map(len(records), {"M": "true"}),
        },
    )
    return codecs["trades"].encode(batch)


def log_batch(values, at=0, topic=BINANCE_TRADES, keys=None, headers=None, step=1):
    count = len(values)
    return LogBatch(
        topic=topic.log,
        partition=3,
        offsets=at + np.arange(count, dtype=np.int64) * step,
        timestamps_ms=NOW // 1_000 + np.arange(count),
        keys=keys or [b"K"] * count,
        values=values,
        headers=headers or {},
        first_offset=at,
        last_offset=at + count * step - 1,
        highwater=at + count * step,
    )


def validator(codecs, topic=BINANCE_TRADES, *, epoch=EPOCH, tiers=TIERS, **options):
    kind = topic.data_type
    return Validator(
        topic,
        3,
        epoch,
        codecs=LaneCodecs(codecs[kind], codecs["gaps"], codecs["dlq"]),
        options=Validate(_env_file=None, **{"group_records": 5, **options}),
        clock=FixedClock(),
        tiers=tiers,
    )


@dataclass
class Reader:
    """A consumer of one output topic: what it applied, by place."""

    topic: str
    strict: bool = True
    cover: CoverReader = None
    rows: list = field(default_factory=list)
    at: int = 0

    def __post_init__(self):
        self.cover = CoverReader(self.topic, 3, strict=self.strict)

    def take(self, out):
        count = len(out.values)
        batch = LogBatch(
            topic=out.topic,
            partition=out.partition,
            offsets=np.arange(self.at, self.at + count, dtype=np.int64),
            timestamps_ms=np.zeros(count, np.int64),
            keys=out.keys,
            values=out.values,
            headers={0: out.headers},
            first_offset=self.at,
            last_offset=self.at + count - 1,
            highwater=self.at + count,
        )
        self.at += count
        shed = []
        for group in self.cover.read(batch):
            values = batch.values[group.start : group.stop]
            self.rows += zip(group.sequences.tolist(), values, strict=True)
            shed += shed_in(batch, group)
        return shed


@dataclass
class Readers:
    topic: object = BINANCE_TRADES
    ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self):
        self.by_topic = {
            self.topic.validated: Reader(self.topic.validated),
            self.topic.dlq: Reader(self.topic.dlq, strict=False),
            self.topic.gaps: Reader(self.topic.gaps, strict=False),
        }

    def take(self, outputs):
        for out in outputs:
            for shed in self.by_topic[out.topic].take(out):
                self.ledger.add(shed)

    def offsets(self, name):
        return [offset for offset, _ in self.by_topic[getattr(self.topic, name)].rows]


def test_survivors_keep_their_bytes_keys_times_and_places(codecs):
    values = trade_values(codecs, [("BTCUSDT", i) for i in range(1, 13)])
    keys = [b"key-%d" % i for i in range(12)]
    outcome = validator(codecs).apply(log_batch(values, at=0, keys=keys))
    assert [len(out.values) for out in outcome.outputs] == [5, 5, 2]
    assert [v for out in outcome.outputs for v in out.values] == values
    assert [k for out in outcome.outputs for k in out.keys] == keys
    times = np.concatenate([out.timestamps_ms for out in outcome.outputs])
    assert times.tolist() == [NOW // 1_000 + i for i in range(12)]
    readers = Readers()
    readers.take(outcome.outputs)
    assert readers.offsets("validated") == list(range(12))
    assert (outcome.records, outcome.next_offset, outcome.counts.ok) == (12, 12, 12)


def test_bad_records_become_dead_letters_with_their_raw_bytes(codecs):
    values = trade_values(codecs, [("BTCUSDT", i) for i in (1, 2, "x-1", 3)])
    values[1:1] = [b"not a record", None]
    values.append(trade_values(codecs, [("BTC USDT", 4)])[0])
    outcome = validator(codecs).apply(log_batch(values))
    readers = Readers()
    readers.take(outcome.outputs)
    assert readers.offsets("validated") == [0, 3, 5]
    assert readers.offsets("dlq") == [1, 2, 4, 6]
    assert outcome.dead_letters == {
        "BAD_MAGIC": 1,
        "NO_VALUE": 1,
        "ID_NOT_INTEGER": 1,
        "SYMBOL_INVALID": 1,
    }
    raw = [value for _, value in readers.by_topic[BINANCE_TRADES.dlq].rows]
    letters = codecs["dlq"].decode(raw).batch.to_pylist()
    assert [letter["value"] for letter in letters] == [values[i] for i in (1, 2, 4, 6)]
    assert letters[0]["reason"] == "BAD_MAGIC"
    assert [letter["offset"] for letter in letters] == [1, 2, 4, 6]
    assert {(m["topic"], m["partition"], m["log_epoch"], m["key"]) for m in letters} == {
        (BINANCE_TRADES.log, 3, EPOCH, b"K")
    }


def test_what_no_batch_can_hold_is_a_dead_letter_that_points_to_it(codecs):
    values = trade_values(codecs, [("BTCUSDT", 1), ("BTCUSDT", 2)])
    keys = [b"K" * 1_000_000, b"K"]
    outcome = validator(codecs).apply(log_batch(values, keys=keys))
    readers = Readers()
    readers.take(outcome.outputs)
    assert readers.offsets("validated") == [1]
    ((offset, raw),) = readers.by_topic[BINANCE_TRADES.dlq].rows
    (letter,) = codecs["dlq"].decode([raw]).batch.to_pylist()
    assert (offset, letter["reason"], letter["key"]) == (0, "TOO_LARGE", None)
    assert letter["value"] == values[0]


def test_gaps_are_events_at_the_record_that_showed_them(codecs):
    values = trade_values(codecs, [("BTCUSDT", i) for i in (1, 2, 5, 9, 3)])
    outcome = validator(codecs).apply(log_batch(values))
    readers = Readers()
    readers.take(outcome.outputs)
    rows = readers.by_topic[BINANCE_TRADES.gaps].rows
    events = codecs["gaps"].decode([value for _, value in rows]).batch.to_pylist()
    assert [offset for offset, _ in rows] == [2, 3, 4]
    assert [
        (e["event"], e["first_id"], e["last_id"], e["how"], e["log_offset"]) for e in events
    ] == [
        ("opened", 3, 4, "jump", 2),
        ("opened", 6, 8, "jump", 3),
        ("closed", 3, 3, "late", 4),
    ]
    assert len({e["message_id"] for e in events}) == 3
    assert (outcome.missing_ids, outcome.counts.late) == (5, 1)


def test_a_batch_without_survivors_still_covers_its_range(codecs):
    lane, readers = validator(codecs), Readers()
    values = trade_values(codecs, [("BTCUSDT", 1)])
    for at in range(3):
        outcome = lane.apply(log_batch(values, at=at))
        readers.take(outcome.outputs)
    assert outcome.outputs[0].values == [None]
    assert outcome.counts.duplicates == 1
    assert readers.offsets("validated") == [0]
    assert readers.by_topic[BINANCE_TRADES.validated].cover.applied == {EPOCH: 2}


def test_offsets_may_have_holes(codecs):
    lane, readers = validator(codecs), Readers()
    values = trade_values(codecs, [("BTCUSDT", i) for i in range(1, 9)])
    readers.take(lane.apply(log_batch(values, step=3)).outputs)
    assert readers.offsets("validated") == list(range(0, 24, 3))
    assert lane.next_offset == 24


def test_records_read_again_are_cut_and_a_hole_stops(codecs):
    lane = validator(codecs)
    values = trade_values(codecs, [("BTCUSDT", i) for i in range(1, 5)])
    lane.apply(log_batch(values[:2]))
    assert lane.apply(log_batch(values[:2])).outputs == []
    outcome = lane.apply(log_batch(values))
    assert (outcome.records, outcome.counts.ok, outcome.next_offset) == (2, 2, 4)
    with pytest.raises(RetentionGapError, match="goes on at offset 9, but 4 is the next"):
        lane.apply(log_batch(values, at=9))


def test_a_log_whose_beginning_is_gone_is_taken_up_where_it_begins(codecs):
    asked = []
    lane = validator(codecs)
    lane.continuity.seed = lambda symbols, own_before: asked.append(own_before) or {}
    readers = Readers()
    readers.take(lane.apply(log_batch(trade_values(codecs, [("BTCUSDT", 5)]), at=100)).outputs)
    assert asked == [100]
    assert readers.offsets("validated") == [100]


symbols = st.sampled_from(["BTCUSDT", "ETHUSDT", "XUSDT"])
trades = st.lists(st.tuples(symbols, st.integers(1, 12)), min_size=1, max_size=40)


def pieces(count, cuts):
    edges = sorted({0, count, *(c for c in cuts if c < count)})
    return list(itertools.pairwise(edges))


@given(trades, st.data())
@settings(max_examples=60, deadline=None)
def test_after_any_crashes_every_reader_has_each_record_once(codecs, records, data):
    values = trade_values(codecs, records)
    for row in data.draw(st.sets(st.integers(0, len(values) - 1), max_size=3)):
        values[row] = b"spoilt"
    expected = Readers()
    reference = validator(codecs)
    expected.take(reference.apply(log_batch(values)).outputs)

    readers, stored = Readers(), {}
    for crash in range(4):
        lane = validator(codecs)
        lane.restore(stored)
        start = lane.next_offset
        stop = len(values) if crash == 3 else data.draw(st.integers(start, len(values)))
        cuts = data.draw(st.lists(st.integers(start, len(values)), max_size=4))
        for first, last in pieces(stop - start, [cut - start for cut in cuts]):
            batch = log_batch(values[start + first : start + last], at=start + first)
            readers.take(lane.apply(batch).outputs)
            if data.draw(st.booleans()):
                entries, offset = lane.checkpoint()
                torn = data.draw(st.integers(0, len(entries)))
                stored |= dict(entries[:torn])
                if torn == len(entries):
                    lane.checkpointed(offset)
    for name in ("validated", "dlq"):
        assert readers.offsets(name) == expected.offsets(name)
    opened = [
        sorted(
            (e["symbol"], i)
            for e in decoded_gaps(codecs, side)
            if e["event"] == "opened"
            for i in range(e["first_id"], e["last_id"] + 1)
        )
        for side in (readers, expected)
    ]
    assert opened[0] == opened[1]
    assert open_ids(codecs, readers) == open_ids(codecs, expected)


def decoded_gaps(codecs, readers):
    rows = readers.by_topic[BINANCE_TRADES.gaps].rows
    return codecs["gaps"].decode([value for _, value in rows]).batch.to_pylist()


def open_ids(codecs, readers):
    """Ids still missing, by what the events say in order."""
    missing = set()
    for event in decoded_gaps(codecs, readers):
        ids = {(event["symbol"], i) for i in range(event["first_id"], event["last_id"] + 1)}
        missing = missing | ids if event["event"] == "opened" else missing - ids
    return missing


@given(trades, st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_the_levels_and_crashes_shed_and_emitted_add_up(codecs, records, data):
    values = trade_values(codecs, records)
    reference = Readers()
    reference.take(validator(codecs).apply(log_batch(values)).outputs)
    readers, stored = Readers(), {}
    for crash in range(3):
        lane = validator(codecs)
        lane.restore(stored)
        start = lane.next_offset
        stop = len(values) if crash == 2 else data.draw(st.integers(start, len(values)))
        cuts = data.draw(st.lists(st.integers(start, len(values)), max_size=4))
        for first, last in pieces(stop - start, [cut - start for cut in cuts]):
            level = data.draw(st.sampled_from(Level))
            batch = log_batch(values[start + first : start + last], at=start + first)
            readers.take(lane.apply(batch, level).outputs)
            if data.draw(st.booleans()):
                entries, offset = lane.checkpoint()
                stored |= dict(entries)
                lane.checkpointed(offset)
    place = LogPlace(EPOCH, BINANCE_TRADES.log, 3)
    shed = [o for one in readers.ledger.pending(place) for o in one.offsets().tolist()]
    assert sorted(readers.offsets("validated") + shed) == reference.offsets("validated")
    # What is shed is no gap.
    assert open_ids(codecs, readers) == open_ids(codecs, reference)


@pytest.mark.parametrize(
    ("level", "kept"),
    [
        (Level.NORMAL, [0, 1, 2]),
        (Level.SOFT, [0, 1, 2]),
        (Level.GRACEFUL, [0, 1]),
        (Level.AGGRESSIVE, [0]),
        (Level.CIRCUIT_BREAK, []),
    ],
)
def test_each_level_sheds_its_tiers(codecs, level, kept):
    values = trade_values(codecs, [("BTCUSDT", 1), ("ETHUSDT", 1), ("XUSDT", 1)])
    outcome = validator(codecs).apply(log_batch(values), level)
    readers = Readers()
    readers.take(outcome.outputs)
    assert readers.offsets("validated") == kept
    assert [(s.tier, s.first, s.count) for s in outcome.shed] == [
        (offset + 1, offset, 1) for offset in range(len(kept), 3)
    ]


def test_another_incarnation_starts_afresh(codecs):
    lane = validator(codecs)
    lane.apply(log_batch(trade_values(codecs, [("BTCUSDT", 1)])))
    entries, offset = lane.checkpoint()
    assert offset == 1
    again = validator(codecs)
    again.restore(entries)
    assert (again.next_offset, again.checkpointed_offset, len(again.continuity)) == (1, 1, 1)
    other = validator(codecs, epoch=OTHER)
    other.restore(dict(entries))
    assert (other.next_offset, other.checkpointed_offset, len(other.continuity)) == (0, 0, 0)
    with pytest.raises(LogCorruptError):
        other.restore({b"0/0": b"nonsense, but long enough for a head"})


def test_the_generation_moves_on_only_with_a_stored_checkpoint(codecs):
    lane = validator(codecs)
    first, _ = lane.checkpoint()
    again, _ = lane.checkpoint()
    assert [key for key, _ in first] == [key for key, _ in again] == [b"1/0"]
    lane.checkpointed(0)
    assert [key for key, _ in lane.checkpoint()[0]] == [b"0/0"]


def test_quotes_use_their_sessions(codecs):
    ids = [10, 14, 30, 34, 20]
    times = np.full(len(ids), NOW)
    batch = build(
        "quotes",
        len(ids),
        {
            "message_id": [f"m{i}" for i in ids],
            "quote_id": [str(i) for i in ids],
            "symbol": "BTCUSDT",
            "exchange": "BINANCE",
            "asset_class": "crypto",
            "timestamp": times,
            "receive_timestamp": times,
            "ingestion_timestamp": times,
            "bid_price": ["2", "3", "0", "1", "1"],
            "bid_quantity": "1",
            "ask_price": ["3", "2", "1", "1", "2"],
            "ask_quantity": "1",
            "currency": "USDT",
        },
    )
    values = codecs["quotes"].encode(batch)
    headers = {0: (("k2-session", b"s1"),), 2: (("k2-session", b"s2"), ("other", b""))}
    lane = validator(codecs, BINANCE_QUOTES)
    outcome = lane.apply(log_batch(values[:4], topic=BINANCE_QUOTES, headers=headers))
    assert outcome.flagged == {"CROSSED": 1, "LOCKED": 1, "ONE_SIDED": 1}
    assert list(lane.continuity.tracks["BTCUSDT"].current.seen) == [(10, 14), (30, 34)]
    late = lane.apply(log_batch(values[4:], at=4, topic=BINANCE_QUOTES))
    assert (late.counts.late, late.gaps) == (1, [])
    readers = Readers(BINANCE_QUOTES)
    readers.take([*outcome.outputs, *late.outputs])
    assert readers.offsets("validated") == [0, 1, 2, 3, 4]


def test_groups_stay_below_the_limit_of_bytes(codecs):
    values = trade_values(codecs, [("BTCUSDT", i) for i in range(1, 400)])
    lane = Validator(
        BINANCE_TRADES,
        3,
        EPOCH,
        codecs=LaneCodecs(codecs["trades"], codecs["gaps"], codecs["dlq"]),
        options=Validate(_env_file=None),
        clock=FixedClock(),
        max_batch_bytes=32_000,
    )
    outcome = lane.apply(log_batch(values))
    sizes = [sum(map(len, out.values)) + 48 * len(out.values) for out in outcome.outputs]
    assert len(sizes) > 3
    assert max(sizes) <= 32_000
    readers = Readers()
    readers.take(outcome.outputs)
    assert readers.offsets("validated") == list(range(399))


def test_an_empty_stretch_moves_on(codecs):
    lane = validator(codecs)
    batch = log_batch([])
    batch.last_offset = 6
    outcome = lane.apply(batch)
    assert (outcome.next_offset, outcome.outputs[0].values) == (7, [None])


def test_columns_used_are_those_of_both_kinds(codecs):
    for kind in ("trades", "quotes"):
        schema = codecs[kind].schema
        assert schema.field("timestamp").type == pa.timestamp("us")
        assert schema.field("is_backfill").type == pa.bool_()
