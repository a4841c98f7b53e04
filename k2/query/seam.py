"""The seam: which snapshot a query reads, and which hot rows go with it.

Cold is one pinned snapshot; hot is what the tail holds above that snapshot's vector. Because both
come from the same picture (`TailView`) and the same vector, the union has no hole and no double,
whatever is produced, committed or trimmed meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import pyarrow as pa

from k2.lake.vector import Vector
from k2.query.bounds import Bounds
from k2.query.chunk import Chunk
from k2.query.tail import TailView


class Snapshot(Protocol):
    """What the seam needs of a snapshot of the lake."""

    @property
    def snapshot_id(self) -> int | None: ...

    @property
    def vector(self) -> Vector: ...

    @property
    def cost(self) -> int:
        """What reading it costs, beside others of its table."""


S = TypeVar("S", bound=Snapshot)


@dataclass(frozen=True, slots=True)
class Pin(Generic[S]):
    """One table of one answer. `partial`: rows between lake and tail are missing for now."""

    snapshot: S
    view: TailView
    partial: bool

    def hot(self, bounds: Bounds | None = None) -> pa.Table:
        """The hot rows: those above the snapshot's vector; with `bounds`, only where they can be.

        Whole chunks are left out by their symbols and times, rows of others by their symbol: a
        query of one symbol need not look at the others' rows.
        """
        if bounds is None:
            return self.view.rows_above(self.snapshot.vector)
        tables = [
            chunk.above(sequence, bounds.symbols) for chunk, sequence in self.hot_chunks(bounds)
        ]
        return pa.concat_tables(tables) if tables else self.view.schema.empty_table()

    def hot_whole(self, bounds: Bounds) -> pa.Table:
        """`hot` with the columns the lake has beyond K2's."""
        tables = [
            chunk.whole_above(sequence, bounds.symbols)
            for chunk, sequence in self.hot_chunks(bounds)
        ]
        return pa.concat_tables([self.view.whole_schema.empty_table(), *tables])

    def hot_chunks(self, bounds: Bounds) -> Iterator[tuple[Chunk, int]]:
        """Chunks that may hold hot rows within `bounds`, each with what its rows must be above."""
        for chunk, sequence in self.view.chunks_above(self.snapshot.vector):
            low, high = chunk.bounds_us
            if bounds.start_us is not None and high < bounds.start_us:
                continue
            if bounds.end_us is not None and low >= bounds.end_us:
                continue
            # Last, since to know its symbols a chunk has to be looked through once.
            if bounds.symbols is not None and bounds.symbols.isdisjoint(chunk.symbols):
                continue
            yield chunk, sequence

    def newest_us(self) -> int | None:
        """When the newest row in memory was handed to the log, µs; None: memory has none.

        Of each place one row is looked at: the last, for rows come in the order of their log.
        """
        newest = None
        for hot in self.view.places.values():
            if hot.chunks:
                us = hot.chunks[-1].rows["ingestion_timestamp"][-1].value
                newest = us if newest is None else max(newest, us)
        return newest

    def as_of(self) -> dict[str, Any]:
        """What names the rows this answer could see."""
        vector = self.snapshot.vector
        return {
            "snapshot_id": None
            if self.snapshot.snapshot_id is None
            # 64-bit ids do not survive JSON readers with floating-point numbers.
            else str(self.snapshot.snapshot_id),
            "vector": self.view.digest(vector),
            "hot_rows": self.view.count_above(vector),
        }


def pin(candidates: Sequence[S], view: TailView, *, max_hot_rows: int | None = None) -> Pin[S]:
    """Pin the cheapest of `candidates` (newest first) that makes a whole table with the tail.

    An older snapshot will do when the tail has everything that came since. `max_hot_rows`: pass
    over those that leave more rows to the tail. When the tail does not even reach the newest (it
    dropped rows the lake does not have yet), that is pinned all the same and the answer is partial.
    """
    newest = candidates[0]
    if not view.covers(newest.vector):
        return Pin(newest, view, partial=True)
    for candidate in sorted(candidates, key=lambda one: one.cost):
        if (
            view.covers(candidate.vector)
            and view.spans(candidate.vector, newest.vector)
            and (max_hot_rows is None or view.count_above(candidate.vector) <= max_hot_rows)
        ):
            return Pin(candidate, view, partial=False)
    return Pin(newest, view, partial=False)
