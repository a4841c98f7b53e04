"""The row cache: one decodes for all, and what is kept is bounded."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from k2.steps.row_cache import RowCache


def rows(count: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(np.arange(count))], names=["n"])


def test_the_oldest_go_when_there_are_too_many_bytes() -> None:
    cache = RowCache(max_bytes=1_000)
    made: list[int] = []

    def ask(key: int) -> None:
        def decode() -> pa.RecordBatch:
            made.append(key)
            return rows(50)  # 400 bytes

        assert cache.rows(key, decode).num_rows == 50
        assert cache.nbytes <= 1_000

    for key in (1, 2, 1, 2, 3, 2, 1):
        ask(key)
    assert made == [1, 2, 3, 1]


def test_rows_larger_than_the_cache_are_given_and_not_kept() -> None:
    cache = RowCache(max_bytes=10)
    assert cache.rows("big", lambda: rows(50)).num_rows == 50
    assert cache.nbytes == 0


def test_a_failure_is_told_and_not_remembered() -> None:
    cache = RowCache()

    def fail() -> pa.RecordBatch:
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        cache.rows("key", fail)
    assert cache.rows("key", lambda: rows(3)).num_rows == 3


def test_threads_that_ask_at_once_decode_once() -> None:
    cache = RowCache()
    both, calls = threading.Barrier(2, timeout=30), []

    def decode() -> pa.RecordBatch:
        calls.append(1)
        return rows(5)

    def ask() -> pa.RecordBatch:
        both.wait()
        return cache.rows("key", decode)

    with ThreadPoolExecutor(2) as threads:
        one, other = (threads.submit(ask) for _ in range(2))
        assert one.result() is other.result()
    assert calls == [1]


def test_empty_rows_are_bounded_too() -> None:
    cache = RowCache()
    for key in range(3_000):
        cache.rows(key, lambda: rows(0))
    calls: list[int] = []

    def decode() -> pa.RecordBatch:
        calls.append(1)
        return rows(0)

    cache.rows(2_999, decode)
    assert not calls
    cache.rows(0, decode)
    assert calls == [1]
