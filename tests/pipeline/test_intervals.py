"""IntervalSet against a plain set of integers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from k2.pipeline.intervals import IntervalSet

runs = st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda r: (r[0], r[0] + r[1]))
steps = st.lists(st.tuples(st.sampled_from(["add", "remove"]), runs), max_size=30)


def build(operations):
    ours, model = IntervalSet(), set()
    for name, (first, last) in operations:
        getattr(ours, name)(first, last)
        ids = range(first, last + 1)
        model = model.union(ids) if name == "add" else model.difference(ids)
    return ours, model


def ids_of(runs_):
    return {i for first, last in runs_ for i in range(first, last + 1)}


@given(steps)
def test_holds_the_same_ids_as_a_set_in_maximal_runs(operations):
    ours, model = build(operations)
    assert ids_of(ours) == model
    assert ours.size() == len(model)
    assert ours.high == max(model, default=-1)
    assert all(end + 1 < start for end, start in zip(ours.ends, ours.starts[1:], strict=False))


@given(steps, runs)
def test_answers_like_a_set(operations, run):
    ours, model = build(operations)
    first, last = run
    asked = set(range(first, last + 1))
    probe = np.arange(0, 80)
    assert ours.contains(probe).tolist() == [i in model for i in probe]
    assert [i in ours for i in probe.tolist()] == [i in model for i in probe]
    assert ids_of(ours.holes(first, last)) == asked - model
    assert ids_of(ours.parts(first, last)) == asked & model
    assert ours.below(first) == max((i for i in model if i < first), default=-1)


@given(st.lists(runs, max_size=30))
def test_from_arrays_is_the_union_whatever_the_order(many):
    starts, ends = [r[0] for r in many], [r[1] for r in many]
    assert IntervalSet.from_arrays(starts, ends) == IntervalSet(tuple(many))
    assert IntervalSet.from_ids(sorted(ids_of(many), reverse=True)) == IntervalSet(tuple(many))


def test_the_largest_id_does_not_wrap():
    top = 2**63 - 1
    ours = IntervalSet.from_arrays([0, top - 1], [3, top])
    assert list(ours) == [(0, 3), (top - 1, top)]
    ours.add(10, top)
    assert ours.high == top


def test_forget_takes_the_lowest_runs_and_says_up_to_where():
    ours = IntervalSet(((1, 2), (5, 6), (9, 9)))
    assert ours.forget(2) == 6
    assert list(ours) == [(9, 9)]
    assert ours.forget(0) == -1
    assert ours.forget(5) == 9
    assert len(ours) == 0
    assert ours.forget(1) == -1
