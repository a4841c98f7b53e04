"""The first hot rows of a question, by where they are: chunks and positions, nothing copied yet.

Rows of files that were kept (`k2.query.near_rows`) are joined to them as chunks of their own.

Chunks are looked at by their nearest row, until no further chunk can matter. Only what is in the
answer is taken from the columns, or from rows that were made JSON before (`k2.query.row_texts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2.query.asked import RecordsQuery, beyond, narrowed, near, nth_of
from k2.query.chunk import Chunk
from k2.query.cold import ColdSnapshot
from k2.query.filters import Key, after_key, all_of
from k2.query.seam import Pin

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class HotRows:
    """Rows in the order of a query: the n-th is at `places[n]` of `chunks[which[n]]`."""

    chunks: tuple[Chunk, ...]
    which: _Ints
    places: _Ints
    times_us: _Ints

    def __len__(self) -> int:
        return len(self.places)

    def edge_us(self, query: RecordsQuery) -> int | None:
        """The limit-th timestamp, µs, beyond which no row is in the answer; None: there is none."""
        return int(self.times_us[-1]) if len(self) >= query.limit else None

    def with_chunks(self, chunks: Sequence[Chunk], query: RecordsQuery) -> HotRows:
        """The first of these and of all rows of other chunks, in order."""
        edge, parts = self.edge_us(query), []
        for chunk in chunks:
            places = np.arange(len(chunk.sequences))
            parts.append(
                (chunk, places if edge is None else places[near(chunk.times_us, edge, query)])
            )
        return _with(self, parts, query)

    def picked(self, index: _Ints | slice) -> HotRows:
        """Those at `index`, in its order."""
        return HotRows(self.chunks, self.which[index], self.places[index], self.times_us[index])

    def slice(self, first: int, count: int) -> HotRows:
        """`count` rows from the `first` on."""
        return self.picked(slice(first, first + count))

    def key(self, index: int) -> Key:
        """The key of one row."""
        chunk = self.chunks[self.which[index]]
        sequence = int(chunk.sequences[self.places[index]])
        return Key(int(self.times_us[index]), sequence, *chunk.tie)

    def sequences(self) -> _Ints:
        """The platform_sequence of each row."""
        found = np.empty(len(self), np.int64)
        for number, chunk in enumerate(self.chunks):
            own = self.which == number
            found[own] = chunk.sequences[self.places[own]]
        return found

    def table(self, schema: pa.Schema) -> pa.Table:
        """The rows themselves."""
        if not len(self):
            return schema.empty_table()
        used = np.unique(self.which)
        if len(used) == 1:
            return self.chunks[used[0]].rows.take(pa.array(self.places))
        # Grouped by chunk, then put in order: a table takes rows of one chunk at a time.
        grouped = np.argsort(self.which, kind="stable")
        tables = [
            self.chunks[number].rows.take(pa.array(self.places[self.which == number]))
            for number in used
        ]
        back = np.empty(len(grouped), np.int64)
        back[grouped] = np.arange(len(grouped))
        return pa.concat_tables(tables).take(pa.array(back))


def hot_rows(pinned: Pin[ColdSnapshot], query: RecordsQuery) -> HotRows:
    """The first `query.limit` hot rows, in a total order."""
    chunks = list(pinned.hot_chunks(query.bounds))
    if query.newest_first:
        chunks.sort(key=lambda pair: -pair[0].bounds_us[1])
    else:
        chunks.sort(key=lambda pair: pair[0].bounds_us[0])
    best = HotRows((), *(np.empty(0, np.int64) for _ in range(3)))
    for chunk, sequence in chunks:
        edge = best.edge_us(query)
        if edge is not None and beyond(chunk.bounds_us, edge, query):
            break
        places = _wanted(chunk, sequence, narrowed(query, edge))
        if len(places):
            best = _with(best, [(chunk, places)], query)
    return best


def _with(best: HotRows, parts: Sequence[tuple[Chunk, _Ints]], query: RecordsQuery) -> HotRows:
    """The first `query.limit` of these and of the rows at some places of other chunks, in order."""
    which, places, times = [best.which], [best.places], [best.times_us]
    for number, (chunk, own) in enumerate(parts, len(best.chunks)):
        which.append(np.full(len(own), number))
        places.append(own)
        times.append(chunk.times_us[own])
    chunks = (*best.chunks, *(chunk for chunk, _ in parts))
    rows = HotRows(chunks, *map(np.concatenate, (which, places, times)))
    order = np.lexsort((_ranks(chunks)[rows.which], rows.sequences(), rows.times_us))
    return rows.picked((order[::-1] if query.newest_first else order)[: query.limit])


def _ranks(chunks: Sequence[Chunk]) -> _Ints:
    """What decides between rows of equal time and sequence: the place each chunk is of."""
    known = {tie: rank for rank, tie in enumerate(sorted({chunk.tie for chunk in chunks}))}
    return np.array([known[chunk.tie] for chunk in chunks], np.int64)


def _wanted(chunk: Chunk, sequence: int, query: RecordsQuery) -> _Ints:
    """Positions of the rows the query wants, or of many the `limit` nearest, ties included."""
    if query.symbols is None:
        places = np.arange(chunk.below(sequence), len(chunk.sequences))
    else:
        places = chunk.places_of(query.symbols, sequence)
    start, end = query.times
    times = chunk.times_us[places]
    if start is not None:
        places, times = _kept(times >= start, places, times)
    if end is not None:
        places, times = _kept(times < end, places, times)
    mask = _others(chunk, places, query)
    if mask is not None:
        places, times = _kept(mask, places, times)
    if len(places) > query.limit:
        places = places[near(times, nth_of(times, query), query)]
    return places


def _kept(mask: npt.NDArray[np.bool_], places: _Ints, times: _Ints) -> tuple[_Ints, _Ints]:
    return places[mask], times[mask]


def _others(chunk: Chunk, places: _Ints, query: RecordsQuery) -> Any:
    """Which rows pass what a query asks beside symbols and times; None: it asks nothing else."""
    tests = replace(query, symbols=None).tests
    if query.exchanges is not None and chunk.exchanges <= query.exchanges:
        tests = query.filters
    if not tests and query.after is None:
        return None
    rows = chunk.rows.take(pa.array(places))
    masks = [test.mask(rows) for test in tests]
    if query.after is not None:
        masks.append(
            after_key(rows, query.time_column, query.after, newest_first=query.newest_first)
        )
    # A missing value passes no test.
    return all_of(masks).fill_null(False).to_numpy()
