"""The tail: the hot rows of one data type, in memory, until the lake has them.

Rows are kept per place (epoch, validated topic, partition) as Arrow chunks of the lake's columns
with their platform_sequence. A place has a low-water mark: every surviving record above it, up to
`high`, is held. Only a snapshot whose vector is at or above all low-water marks may be joined with
the tail (`TailView.covers`), which is what keeps the union without a hole.

One writer, any number of readers: a reader takes an immutable `TailView`, the writer swaps it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from k2.lake.vector import Place, Position, Vector
from k2.query.chunk import Chunk

#: Chunks are merged up to this size: large enough to scan fast, small enough to prune and drop.
CHUNK_ROWS = 65_536
#: Chunks whose arrivals are further apart stay apart, else a quiet partition would never age.
CHUNK_SPAN_S = 60.0
#: A few rows that are a cut of many keep all of those in memory. What was not merged, which copies,
#: within this time is copied.
_OWN_AFTER_S = 2.0


@dataclass(frozen=True)
class HotPlace:
    """What the tail holds of one place: everything above `low`, up to `high` inclusive."""

    low: int
    high: int
    chunks: tuple[Chunk, ...] = ()

    def chunks_above(self, sequence: int) -> Iterator[Chunk]:
        """Chunks with rows above `sequence`, the youngest first."""
        for chunk in reversed(self.chunks):
            if chunk.last <= sequence:
                break
            yield chunk

    def count_above(self, sequence: int) -> int:
        """How many rows have a platform_sequence above `sequence`."""
        chunks = self.chunks_above(sequence)
        return sum(len(chunk.sequences) - chunk.below(sequence) for chunk in chunks)


@dataclass(frozen=True)
class TailView:
    """An immutable picture of the tail. `added`: columns the lake has beyond `schema`."""

    schema: pa.Schema
    places: Mapping[Place, HotPlace] = field(default_factory=dict)
    added: tuple[pa.Field, ...] = ()

    @property
    def whole_schema(self) -> pa.Schema:
        return pa.schema([*self.schema, *self.added])

    def covers(self, vector: Vector) -> bool:
        """True when the tail holds every row above `vector`, as far as the tail has read."""
        return all(hot.low <= _sequence(vector, place) for place, hot in self.places.items())

    def spans(self, vector: Vector, newest: Vector) -> bool:
        """True when the tail has read whatever `newest` holds beyond `vector`.

        Else an answer from the older snapshot would miss rows that the newer one has.
        """
        for place, position in newest.entries.items():
            if position.sequence > _sequence(vector, place):
                hot = self.places.get(place)
                if hot is None or hot.high < position.sequence:
                    return False
        return True

    def chunks_above(self, vector: Vector) -> Iterator[tuple[Chunk, int]]:
        """Chunks with rows above `vector`, each with the sequence its rows must be above."""
        for place, hot in self.places.items():
            sequence = _sequence(vector, place)
            for chunk in hot.chunks_above(sequence):
                yield chunk, sequence

    def rows_above(self, vector: Vector) -> pa.Table:
        """All rows whose platform_sequence is above the vector's position of their place."""
        tables = [chunk.above(sequence) for chunk, sequence in self.chunks_above(vector)]
        return pa.concat_tables(tables) if tables else self.schema.empty_table()

    def count_above(self, vector: Vector) -> int:
        """How many rows `rows_above` would give."""
        places = self.places.items()
        return sum(hot.count_above(_sequence(vector, place)) for place, hot in places)

    def digest(self, vector: Vector) -> str:
        """Identity of the rows an answer could see: `vector` moved up to what the tail has read."""
        ahead = {
            place: Position(0, max(hot.high, _sequence(vector, place)))
            for place, hot in self.places.items()
        }
        seen = {place: Position(0, at.sequence) for place, at in vector.entries.items()}
        text = Vector({**seen, **ahead}).to_summary()
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class TailStats:
    """`lost`: rows dropped by the byte cap before the lake had them (since the start)."""

    rows: int
    nbytes: int
    chunks: int
    places: int
    lost: int


class Tail:
    """Hot rows of one data type. `schema`: K2's columns; `added`: what the lake has beyond them."""

    def __init__(self, schema: pa.Schema, added: Sequence[pa.Field] = ()) -> None:
        self._lock = threading.Lock()
        self._view = TailView(schema, added=tuple(added))
        self._lost = 0

    def view(self) -> TailView:
        return self._view

    def start(self, place: Place, sequence: int) -> None:
        """Hold `place` from above `sequence` on (-1: from the beginning of its log)."""
        with self._lock:
            self._put({place: HotPlace(low=sequence, high=sequence)})

    def forget(self, keep: frozenset[Place], committed: Vector) -> None:
        """Let go of places that can get no more rows and whose rows are all in the lake."""
        with self._lock:
            places = {
                place: hot
                for place, hot in self._view.places.items()
                if place in keep or hot.high > _sequence(committed, place)
            }
            self._view = replace(self._view, places=places)

    def add(self, place: Place, rows: pa.RecordBatch, *, last: int, now_s: float) -> None:
        """Append the surviving records, maybe none, of a cover that ends at `last`.

        `rows` rise by their column platform_sequence. A place never started begins at the first of
        them, so that the tail never claims to hold what it did not see.
        """
        sequences = rows.column("platform_sequence").to_numpy()
        with self._lock:
            first = int(sequences[0]) - 1 if len(sequences) else last
            hot = self._view.places.get(place) or HotPlace(low=first, high=first)
            fresh = int(np.searchsorted(sequences, hot.high, side="right"))
            chunks = hot.chunks
            if fresh < len(sequences):
                table = pa.Table.from_batches([rows.slice(fresh)])
                if not table.schema.equals(self._view.whole_schema, check_metadata=True):
                    table = table.cast(self._view.whole_schema)
                own, more = _parted(table, len(self._view.schema))
                chunks = _merged((*chunks, Chunk(own, sequences[fresh:], now_s, now_s, more)))
            self._put({place: replace(hot, high=max(hot.high, last), chunks=chunks)})

    def trim(
        self, now_s: float, committed: Vector, *, max_minutes: float, max_bytes: int
    ) -> TailStats:
        """Drop what is in the lake and old, or in the lake and too much; at last, the oldest.

        Rows that are not in the lake leave only above `max_bytes`: the low-water mark is then
        above the lake's vector, and answers are partial until the lake has caught up.
        """
        oldest = now_s - max_minutes * 60.0
        with self._lock:
            total = sum(c.nbytes for hot in self._view.places.values() for c in hot.chunks)
            drop: dict[Place, int] = {}
            for place, index, chunk, stored in self._by_arrival(committed):
                over = total > max_bytes
                if index != drop.get(place, 0) or not (over or (stored and chunk.last_s < oldest)):
                    continue
                drop[place] = index + 1
                total -= chunk.nbytes
                self._lost += 0 if stored else len(chunk.sequences)
            self._put({place: self._without(place, count) for place, count in drop.items()})
            self._own(now_s - _OWN_AFTER_S)
        return self.stats()

    def stats(self) -> TailStats:
        chunks = [chunk for hot in self._view.places.values() for chunk in hot.chunks]
        return TailStats(
            rows=sum(len(chunk.sequences) for chunk in chunks),
            nbytes=sum(chunk.nbytes for chunk in chunks),
            chunks=len(chunks),
            places=len(self._view.places),
            lost=self._lost,
        )

    def _own(self, before_s: float) -> None:
        """Copy the chunks that keep the memory of others, once they can be expected to stay."""
        for place, hot in self._view.places.items():
            chunks = tuple(
                chunk.owned() if chunk.last_s < before_s and chunk.borrowed else chunk
                for chunk in hot.chunks
            )
            if chunks != hot.chunks:
                self._put({place: replace(hot, chunks=chunks)})

    def _by_arrival(self, committed: Vector) -> list[tuple[Place, int, Chunk, bool]]:
        """Chunks in the order they may leave: what the lake has first, then by age."""
        rows = [
            (place, index, chunk, chunk.last <= _sequence(committed, place))
            for place, hot in self._view.places.items()
            for index, chunk in enumerate(hot.chunks)
        ]
        return sorted(rows, key=lambda row: (not row[3], row[2].last_s, row[1]))

    def _without(self, place: Place, count: int) -> HotPlace:
        hot = self._view.places[place]
        return replace(hot, low=max(hot.low, hot.chunks[count - 1].last), chunks=hot.chunks[count:])

    def _put(self, places: Mapping[Place, HotPlace]) -> None:
        self._view = replace(self._view, places={**self._view.places, **places})


def _sequence(vector: Vector, place: Place) -> int:
    position = vector.get(place)
    return -1 if position is None else position.sequence


def _parted(rows: pa.Table, own: int) -> tuple[pa.Table, pa.Table | None]:
    """K2's columns and the added ones (None: there are none)."""
    if rows.num_columns == own:
        return rows, None
    return rows.select(range(own)), rows.select(range(own, rows.num_columns))


def _merged(chunks: tuple[Chunk, ...]) -> tuple[Chunk, ...]:
    """Merge the youngest chunks like a binary counter, so that each row is copied log(n) times."""
    while len(chunks) > 1:
        left, right = chunks[-2:]
        rows = len(left.sequences) + len(right.sequences)
        if (
            len(left.sequences) > 2 * len(right.sequences)
            or rows > CHUNK_ROWS
            or right.last_s - left.first_s > CHUNK_SPAN_S
        ):
            break
        chunks = (*chunks[:-2], left.joined(right))
    return chunks
