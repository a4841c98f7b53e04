import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from k2.errors import StaleWriterError
from k2.lake.vector import Place, Position
from k2.pipeline.sink import SinkBuffer, SinkPolicy, places_of

SCHEMA = pa.schema([("id", pa.int64())])
POLICY = SinkPolicy(batch_rows=10, interval_s=5.0, min_interval_s=1.0, max_bytes=8_000, max_rows=50)


def place(partition=0, epoch="e"):
    return Place(epoch, "market.crypto.trades.binance.validated", partition)


def rows(*ids):
    return pa.table({"id": pa.array(ids, pa.int64())}, SCHEMA)


@pytest.fixture
def buffer():
    made = SinkBuffer(SCHEMA, POLICY)
    made.assign(place(), None)
    return made


def ids_of(flush):
    return flush.rows["id"].to_pylist()


def test_nothing_is_never_due(buffer):
    assert buffer.wait_s(1e9) is None
    assert not buffer.due(1e9)
    assert buffer.oldest_s() is None


def test_a_few_rows_wait_for_the_interval(buffer):
    buffer.add(place(), rows(1), Position(1, 0), 100.0)
    assert buffer.wait_s(101.0) == pytest.approx(4.0)
    assert buffer.due(105.0)


def test_a_batch_of_rows_is_due_at_once(buffer):
    buffer.add(place(), rows(*range(10)), Position(10, 9), 100.0)
    assert buffer.due(100.0)


def test_what_arrives_during_a_commit_goes_into_the_next_a_second_after_the_last(buffer):
    buffer.add(place(), rows(*range(10)), Position(10, 9), 100.0)
    flush = buffer.take(100.0)
    buffer.add(place(), rows(*range(10, 30)), Position(30, 29), 100.1)
    assert buffer.wait_s(100.1) is None
    buffer.committed(flush, 100.2)
    assert buffer.wait_s(100.2) == pytest.approx(0.8)
    following = buffer.take(101.0)
    assert (following.base, following.positions) == (
        {place(): Position(10, 9)},
        {place(): Position(30, 29)},
    )


def test_a_slow_lake_gets_fewer_and_larger_commits(buffer):
    buffer.add(place(), rows(*range(10)), Position(10, 9), 100.0)
    flush = buffer.take(100.0)
    buffer.add(place(), rows(*range(10, 20)), Position(20, 19), 100.0)
    buffer.committed(flush, 104.0)
    assert buffer.wait_s(104.0) == pytest.approx(4.0)


def test_a_commit_takes_at_most_max_rows_but_always_something(buffer):
    for start in (0, 40, 80):
        buffer.add(
            place(), rows(*range(start, start + 40)), Position(start + 40, start + 39), 100.0
        )
    flush = buffer.take(100.0)
    assert flush.rows.num_rows == 40
    buffer.committed(flush, 100.1)
    assert buffer.due(100.1), "a backlog above max_rows does not wait for the next second"


def test_positions_without_rows_ride_along_or_wait_a_minute(buffer):
    buffer.add(place(), rows(), Position(5, 4), 100.0)
    assert buffer.wait_s(100.0) == pytest.approx(60.0)
    buffer.add(place(), rows(7), Position(8, 7), 101.0)
    assert buffer.wait_s(101.0) == pytest.approx(5.0)
    flush = buffer.take(106.0)
    assert ids_of(flush) == [7]
    assert flush.positions == {place(): Position(8, 7)}


def test_only_empty_positions_make_a_commit_without_rows(buffer):
    buffer.add(place(), rows(), Position(5, 4), 100.0)
    flush = buffer.take(160.0)
    assert flush.rows.num_rows == 0
    assert flush.rows.schema == SCHEMA
    assert flush.positions == {place(): Position(5, 4)}


def test_full_counts_rows_on_their_way(buffer):
    buffer.add(place(), rows(*range(600)), Position(600, 599), 100.0)
    assert not buffer.full
    flush = buffer.take(100.0)
    buffer.add(place(), rows(*range(600, 1_000)), Position(1_000, 999), 100.0)
    assert buffer.full
    buffer.committed(flush, 100.0)
    assert not buffer.full


def test_failed_rows_go_again_before_all_others(buffer):
    buffer.add(place(), rows(1), Position(1, 0), 100.0)
    buffer.add(place(), rows(2), Position(2, 1), 100.0)
    flush = buffer.take(105.0)
    buffer.add(place(), rows(3), Position(3, 2), 105.0)
    buffer.failed(flush, 106.0)
    again = buffer.take(110.0)
    assert ids_of(again) == [1, 2, 3]
    assert again.base == {place(): None}
    buffer.committed(again, 110.1)
    assert buffer.next_position(place()) == Position(3, 2)


def test_revoked_rows_are_dropped_also_those_on_their_way(buffer):
    buffer.assign(place(1), None)
    buffer.add(place(0), rows(1), Position(1, 0), 100.0)
    buffer.add(place(1), rows(2), Position(1, 0), 100.0)
    flush = buffer.take(105.0)
    buffer.add(place(0), rows(3), Position(2, 1), 105.0)
    gone = buffer.revoke(places_of([(place().topic, 0)]))
    assert gone == [place(0)]
    assert buffer.rows == 0
    assert [buffer.holds(flush, place(n)) for n in (0, 1, 2)] == [False, True, False]
    buffer.committed(flush, 106.0)
    assert buffer.next_position(place(0)) is None
    assert buffer.next_position(place(1)) == Position(1, 0)
    with pytest.raises(StaleWriterError, match="assign the place"):
        buffer.add(place(0), rows(4), Position(3, 2), 106.0)


def test_a_place_assigned_anew_during_a_commit_trusts_only_the_lake(buffer):
    buffer.add(place(), rows(1), Position(1, 0), 100.0)
    flush = buffer.take(105.0)
    buffer.assign(place(), None)
    buffer.add(place(), rows(1), Position(1, 0), 105.0)
    assert not buffer.holds(flush, place())
    buffer.committed(flush, 106.0)
    assert buffer.take(111.0).base == {place(): None}, "the lake will refuse this: it has moved"


@pytest.mark.parametrize("position", [Position(3, 2), Position(2, 1), Position(4, 1)])
def test_positions_only_move_forward(buffer, position):
    buffer.add(place(), rows(1), Position(3, 2), 100.0)
    with pytest.raises(StaleWriterError, match="do not follow"):
        buffer.add(place(), rows(2), position, 100.0)


def test_misuse_is_told(buffer):
    with pytest.raises(RuntimeError, match="nothing to commit"):
        buffer.take(0.0)
    buffer.add(place(), rows(1), Position(1, 0), 0.0)
    flush = buffer.take(0.0)
    buffer.committed(flush, 0.0)
    with pytest.raises(RuntimeError, match="not on its way"):
        buffer.failed(flush, 0.0)


def test_record_batches_are_taken_too(buffer):
    buffer.add(place(), rows(1, 2).to_batches()[0], Position(2, 1), 0.0)
    assert ids_of(buffer.take(0.0)) == [1, 2]


class SinkAndLake(RuleBasedStateMachine):
    """A sink that is killed, revoked and refused in any order, against a model lake.

    The log of each partition is the integers 0, 1, 2, …; ids that are no multiple of 3 survive
    validation. The lake checks positions like `LakeWriter` does.
    """

    @initialize()
    def start(self):
        self.now = 0.0
        self.stored = {0: [], 1: [], 2: []}
        self.vector: dict[Place, Position] = {}
        self.flush = None
        self.landed = False
        self.restart()

    def restart(self):
        self.buffer = SinkBuffer(SCHEMA, POLICY)
        self.reading = {}
        self.flush = None

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds):
        self.now += seconds

    @rule(partition=st.integers(0, 2))
    def assign(self, partition):
        if self.flush is not None and not self.landed:
            return  # the agent ends the commit on its way first
        if self.flush is not None:
            self.finish()
        stored = self.vector.get(place(partition))
        self.buffer.assign(place(partition), stored)
        self.reading[partition] = stored.next_offset if stored else 0

    @rule(partition=st.integers(0, 2), count=st.integers(1, 12))
    def read(self, partition, count):
        if partition not in self.reading or self.buffer.full:
            return
        start = self.reading[partition]
        ids = [n for n in range(start, start + count) if n % 3]
        end = start + count
        batch = rows(*(partition * 1_000_000 + n for n in ids))
        self.buffer.add(place(partition), batch, Position(end, end - 1), self.now)
        self.reading[partition] = end

    @precondition(lambda self: self.flush is None)
    @rule(force=st.booleans())
    def take(self, force):
        if self.buffer.due(self.now) or (force and self.buffer.wait_s(self.now) is not None):
            self.flush = self.buffer.take(self.now)
            self.landed = False

    @precondition(lambda self: self.flush is not None and not self.landed)
    @rule()
    def land(self):
        flush = self.flush
        stale = [key for key, at in flush.base.items() if self.vector.get(key) != at]
        if any(self.buffer.holds(flush, key) for key in stale):
            self.restart()  # refused as stale: the worker crashes and starts again
            return
        if stale:
            self.fail()  # all of them left meanwhile: it goes on without them
            return
        for number in flush.rows["id"].to_pylist():
            self.stored[number // 1_000_000].append(number % 1_000_000)
        self.vector.update(flush.positions)
        self.landed = True

    @precondition(lambda self: self.flush is not None and self.landed)
    @rule()
    def finish(self):
        self.buffer.committed(self.flush, self.now)
        self.flush = None

    @precondition(lambda self: self.flush is not None and not self.landed)
    @rule()
    def fail(self):
        self.buffer.failed(self.flush, self.now)
        self.flush = None

    @rule(partition=st.integers(0, 2))
    def revoke(self, partition):
        self.buffer.revoke(places_of([(place().topic, partition)]))
        self.reading.pop(partition, None)

    @rule(partition=st.integers(0, 2))
    def another_worker_stores(self, partition):
        """A partition we were revoked from moves on; ours if we still think so: a zombie."""
        old = self.vector.get(place(partition))
        start = old.next_offset if old else 0
        self.stored[partition] += [n for n in range(start, start + 4) if n % 3]
        self.vector[place(partition)] = Position(start + 4, start + 3)

    @rule()
    def kill(self):
        self.restart()

    @invariant()
    def every_stored_row_once_and_none_missing(self):
        for partition, ids in getattr(self, "stored", {}).items():
            position = self.vector.get(place(partition))
            end = position.next_offset if position else 0
            assert sorted(ids) == [n for n in range(end) if n % 3]

    @invariant()
    def what_counts_as_stored_is(self):
        buffer = getattr(self, "buffer", None)
        for key, position in ({} if buffer is None else buffer._stored).items():
            assert position is None or position <= self.vector[key]


SinkAndLake.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestSinkAndLake = SinkAndLake.TestCase
