"""The limit stops a bad deploy, whatever the batches are cut into, and lets bad data through."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2.errors import DeadLetterLimitError
from k2.pipeline.dead_letter_limit import DeadLetterLimit
from k2.pipeline.side import Refused
from k2.transport.batch import LogBatch


def batch(count: int, at: int = 0) -> LogBatch:
    none: list[bytes | None] = [None] * count
    offsets = np.arange(at, at + count, dtype=np.int64)
    last = at + count - 1
    return LogBatch("market.x", 3, offsets, offsets, none, none, {}, at, last, last + 1)


def feed(limit: DeadLetterLimit, marks: list[bool], cuts: list[int]) -> int | None:
    """The index of the batch that was refused when `marks` (True: refused) come in `cuts`."""
    at = 0
    for number, size in enumerate(cuts):
        part = marks[at : at + size]
        refused = [Refused(row, "BAD", "wrong") for row, bad in enumerate(part) if bad]
        try:
            limit = limit.after(batch(size, at), 0, refused)
        except DeadLetterLimitError:
            return number
        at += size
    return None


@given(
    st.lists(st.booleans(), min_size=1, max_size=60),
    st.lists(st.integers(1, 9), min_size=60, max_size=60),
    st.integers(1, 6),
)
def test_a_run_is_counted_across_batches(marks: list[bool], sizes: list[int], allowed: int) -> None:
    cuts, left = [], len(marks)
    for size in sizes:
        if left > 0:
            cuts.append(min(size, left))
            left -= size
    run, first_over = 0, None
    for index, bad in enumerate(marks):
        run = run + 1 if bad else 0
        if run > allowed and first_over is None:
            first_over = index
    expected = None
    if first_over is not None:
        ends = np.cumsum(cuts)
        expected = int(np.searchsorted(ends, first_over, side="right"))
    assert feed(DeadLetterLimit(allowed, 0.0, 100), marks, cuts) == expected


def test_the_share_is_taken_of_the_last_window() -> None:
    limit = DeadLetterLimit(0, 0.1, 100)
    good = [False] * 40
    assert feed(limit, [*good, *[True] * 10, *good], [40, 10, 40]) is None
    assert feed(limit, [*good, *[True] * 11], [40, 11]) == 1
    # What the window has left behind counts no more.
    later = [*[True] * 10, *[False] * 300, *[True] * 10]
    assert feed(limit, later, [10, 100, 100, 100, 10]) is None


def test_a_window_that_is_not_full_is_patient() -> None:
    assert feed(DeadLetterLimit(0, 0.5, 100), [True] * 50, [50]) is None


def test_single_records_do_not_make_a_long_memory() -> None:
    limit = DeadLetterLimit(0, 0.1, 3_200)
    for at in range(5_000):
        limit = limit.after(batch(1, at), 0, [])
    assert len(limit.shares) <= 40
    assert sum(share.records for share in limit.shares) >= 3_200


def test_the_error_names_place_reasons_and_remedy() -> None:
    refused = [Refused(row, "BAD_DECIMAL", "price 'x'") for row in range(3)]
    with pytest.raises(DeadLetterLimitError) as caught:
        DeadLetterLimit(2, 0.1, 100).after(batch(4, 70), 0, refused)
    message = caught.value.message
    for words in (
        "market.x[3]", "3 records in a row", "K2_VALIDATE_DLQ_MAX_CONSECUTIVE allows 2",
        "3 BAD_DECIMAL", "price 'x'", "offset 70", "roll back",
    ):  # fmt: skip
        assert words in message
    assert caught.value.details["reasons"] == {"BAD_DECIMAL": 3}


def test_no_bound_is_no_limit() -> None:
    assert feed(DeadLetterLimit(0, 0.0, 10), [True] * 500, [500]) is None
