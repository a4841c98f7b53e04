"""Merge sorted runs of rows in bounded memory: pure, over Arrow."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2.errors import K2Error

_Ints = npt.NDArray[np.int64]
#: (symbol, time in µs, platform_sequence)
Key = tuple[str, int, int]


class UnsortedRunError(K2Error):
    """A run that was to be sorted is not."""

    def __init__(self, index: int) -> None:
        super().__init__(f"run {index} is not sorted", index=index)
        self.index = index


class _Run:
    """One input: the chunk at hand and where in it we are."""

    def __init__(self, index: int, chunks: Iterator[pa.Table], keys: Sequence[str]) -> None:
        self.index = index
        self._chunks = chunks
        self._names = keys
        self._last: Key | None = None
        self.start = 0
        self.rows: pa.Table | None = None
        self.advance()

    def advance(self) -> None:
        """Take the next chunk that has rows; `rows` is None after the last."""
        self.rows, self.start = None, 0
        for chunk in self._chunks:
            if chunk.num_rows:
                self._open(chunk)
                return

    def _open(self, chunk: pa.Table) -> None:
        self.rows = chunk
        symbol, time, sequence = self._names
        self._symbols = chunk[symbol].combine_chunks()
        self._times, self._sequences = _ints(chunk[time]), _ints(chunk[sequence])
        order = sort_order(chunk, self._names)
        before = self._last is not None and self.key(0) < self._last
        if before or not np.array_equal(order, np.arange(len(order))):
            raise UnsortedRunError(self.index)
        self._last = self.last

    def key(self, row: int) -> Key:
        return (self._symbols[row].as_py(), int(self._times[row]), int(self._sequences[row]))

    @property
    def last(self) -> Key:
        return self.key(len(self._times) - 1)

    def take(self, upto: Key) -> pa.Table:
        """The rows from where we are up to and with `upto`."""
        assert self.rows is not None
        stop = bisect_right(range(len(self._times)), upto, lo=self.start, key=self.key)
        taken = self.rows.slice(self.start, stop - self.start)
        self.start = stop
        if stop == len(self._times):
            self.advance()
        return taken


def merge_sorted(runs: Sequence[Iterable[pa.Table]], keys: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of all runs, sorted by `keys` (symbol, time, sequence), in tables of any length.

    Each run yields tables of one schema, sorted by `keys`, also across tables. Holds one table of
    every run. Raises `UnsortedRunError`.
    """
    open_runs = [_Run(index, iter(run), keys) for index, run in enumerate(runs)]
    open_runs = [run for run in open_runs if run.rows is not None]
    while open_runs:
        # Up to the lowest last key everything is at hand: later chunks only have higher ones.
        upto = min(run.last for run in open_runs)
        parts = [run.take(upto) for run in open_runs]
        open_runs = [run for run in open_runs if run.rows is not None]
        yield sort_rows(pa.concat_tables(parts), keys)


def sort_rows(rows: pa.Table, keys: Sequence[str]) -> pa.Table:
    """`rows` in the order of `keys`."""
    order = sort_order(rows, keys)
    if np.array_equal(order, np.arange(len(order))):
        return rows
    return rows.take(pa.array(order))


def sort_order(rows: pa.Table, keys: Sequence[str]) -> _Ints:
    """Row numbers in the order of `keys`; equal rows stay as they are."""
    symbol, time, sequence = (rows[name] for name in keys)
    encoded: Any = symbol.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    values = encoded.dictionary.to_pylist()
    rank_of = np.empty(max(1, len(values)), np.int64)
    # Code point order is UTF-8 byte order, which is how Iceberg compares strings.
    rank_of[sorted(range(len(values)), key=values.__getitem__)] = np.arange(len(values))
    ranks = rank_of[encoded.indices.to_numpy(zero_copy_only=False)]
    return np.lexsort((_ints(sequence), _ints(time), ranks)).astype(np.int64)


def _ints(column: pa.ChunkedArray) -> _Ints:
    values: _Ints = column.cast(pa.int64()).to_numpy().astype(np.int64, copy=False)
    return values
