"""The committable offset against the plainest possible model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from k2.errors import LogError
from k2.transport.acks import AckTracker


class Acks(RuleBasedStateMachine):
    """Deliveries, acks in any order and twice, seeks back and redelivery."""

    tickets = Bundle("tickets")

    def __init__(self):
        super().__init__()
        self.tracker = AckTracker(0)
        self.start = self.at = 0
        self.live = {}  # ticket -> offsets
        self.done = set()  # offsets

    @rule(target=tickets, size=st.integers(1, 9))
    def deliver(self, size):
        ticket = self.tracker.add(self.at, self.at + size - 1)
        self.live[ticket] = range(self.at, self.at + size)
        self.at += size
        return ticket

    @rule(ticket=tickets)
    def ack(self, ticket):
        offsets = self.live.pop(ticket, None)
        assert self.tracker.ack(ticket) == (offsets is not None)
        self.done.update(offsets or ())

    @rule(target=tickets, back=st.integers(0, 20))
    def seek(self, back):
        self.at = self.start = max(0, self.at - back)
        self.tracker.seek(self.at)
        self.live.clear()
        self.done.clear()
        return multiple()

    @invariant()
    def everything_below_the_committable_offset_is_acked(self):
        expected = self.start
        while expected in self.done:
            expected += 1
        assert self.tracker.committable() == (None if expected == self.start else expected)

    @invariant()
    def memory_is_what_is_not_acked(self):
        assert self.tracker.pending == len(self.live)
        assert self.tracker.end == self.at


TestAcks = Acks.TestCase


@given(st.permutations(range(20)))
def test_twenty_batches_acked_in_any_order_commit_all(order):
    tracker = AckTracker(0)
    tickets = [tracker.add(n * 5_000, n * 5_000 + 4_999) for n in range(20)]
    for n in order:
        assert tracker.ack(tickets[n])
    assert tracker.committable() == 100_000
    assert tracker.pending == 0


def test_an_ack_of_before_a_seek_does_not_count_for_the_redelivery():
    tracker = AckTracker(0)
    old = tracker.add(0, 9)
    tracker.seek(0)
    new = tracker.add(0, 9)
    assert not tracker.ack(old)
    assert tracker.committable() is None
    assert tracker.ack(new)
    assert tracker.committable() == 10


def test_without_a_position_the_first_delivery_sets_it():
    tracker = AckTracker()
    assert tracker.committable() is None
    ticket = tracker.add(700, 799)
    assert tracker.committable() is None
    tracker.ack(ticket)
    assert tracker.committable() == 800


@pytest.mark.parametrize(("first", "last"), [(11, 20), (9, 20), (10, 9)])
def test_a_delivery_that_does_not_follow_is_refused(first, last):
    tracker = AckTracker(10)
    with pytest.raises(LogError, match="without a seek"):
        tracker.add(first, last)
