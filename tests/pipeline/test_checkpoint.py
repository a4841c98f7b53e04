"""Checkpoints: what goes in comes out, and a torn set is seen."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2.errors import LogCorruptError
from k2.pipeline import checkpoint
from k2.pipeline.continuity import Continuity, Policy
from tests.pipeline.continuity_parts import rows, run, trades
from tests.pipeline.test_continuity import logs, rising_logs

EPOCH = "6f2c3f5e-8a43-4f63-9d0a-8f1f0a1c2b3d"


def copy(continuity, policy):
    made = Continuity(policy, window=continuity.window)
    state = checkpoint.decode(checkpoint.encode(continuity, EPOCH, 77))
    assert (state.epoch, state.next_offset) == (EPOCH, 77)
    checkpoint.load(made, state)
    return made


def dumped(continuity):
    sessions = {}
    columns = checkpoint.dump(continuity, sessions)
    return (
        list(continuity.tracks),
        {name: [int(v) for v in values] for name, values in columns.items()},
        list(sessions),
        continuity.session,
        continuity.evicted,
    )


@given(st.sampled_from(Policy), st.data())
@settings(max_examples=150, deadline=None)
def test_a_restored_state_is_equal_and_goes_on_equally(policy, data):
    log = data.draw(rising_logs if policy is Policy.RISING else logs)
    cut = data.draw(st.integers(0, len(log)))
    original = Continuity(policy, window=4)
    run(original, log[:cut])
    restored = copy(original, policy)
    assert dumped(restored) == dumped(original)
    assert run(restored, log[cut:]) == run(original, log[cut:])
    assert dumped(restored) == dumped(original)


def test_columns_hold_the_extremes_of_int64():
    continuity = Continuity(Policy.CONTIGUOUS)
    run(continuity, [*trades(2**63 - 1, symbol="A"), *trades(0, symbol="B")])
    assert dumped(copy(continuity, Policy.CONTIGUOUS)) == dumped(continuity)


def test_entries_fit_the_limit_and_join_again():
    payload = bytes(range(256)) * 10
    entries = checkpoint.split(7, payload, 1_000)
    assert [key for key, _ in entries] == [b"1/0", b"1/1", b"1/2"]
    assert checkpoint.join(reversed(entries)) == (7, payload)
    assert checkpoint.join([]) is None


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=6), st.data())
def test_whenever_writing_stops_a_complete_checkpoint_is_found(payloads, data):
    table, complete = {}, None
    for generation, payload in enumerate(payloads):
        entries = checkpoint.split(generation, payload, 10)
        torn = generation == len(payloads) - 1 and data.draw(st.integers(0, len(entries)))
        written = entries if torn is False else entries[:torn]
        table |= dict(written)
        if written == entries:
            complete = (generation, payload)
    assert checkpoint.join(table.items()) == complete


def test_chunks_of_two_writers_are_not_taken_for_one_checkpoint():
    ours = checkpoint.split(4, b"a" * 30, 10)
    theirs = checkpoint.split(4, b"b" * 30, 10)
    before = checkpoint.split(3, b"c" * 30, 10)
    table = dict(itertools.chain(before, ours, theirs[:1]))
    assert checkpoint.join(table.items()) == (3, b"c" * 30)


def test_other_bytes_and_versions_are_refused():
    with pytest.raises(LogCorruptError, match="is no checkpoint"):
        checkpoint.join([(b"0/0", b"nonsense of some length")])
    with pytest.raises(LogCorruptError, match="not readable"):
        checkpoint.decode(b"nonsense")
    continuity = Continuity(Policy.CONTIGUOUS)
    continuity.apply(rows(trades(1)))
    state = checkpoint.decode(checkpoint.encode(continuity, EPOCH, 1))
    with pytest.raises(LogCorruptError, match="contiguous feed; this feed is rising"):
        checkpoint.load(Continuity(Policy.RISING), state)
    assert checkpoint.describe(state)["symbols"] == 1
