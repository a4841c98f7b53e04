"""When and what the sink commits: group commit over one table, as a pure core.

Rows wait here in the order they came until a commit is due; one commit is on its way at a time.
Whatever a commit takes it takes whole and in order per place, so a position is never ahead of its
rows. The sink's agent reads, calls `add`, runs `LakeWriter.commit` in a thread and reports back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa

from k2.errors import StaleWriterError
from k2.lake.vector import Place, Position

#: A table's rows are committed at least this many intervals after a position moved without rows, so
#: that a partition whose records are all dropped does not fall behind for ever.
_EMPTY_INTERVALS: Final = 12
#: A commit may take at most this share of the time: when the lake is slow, commits grow instead.
_BUSY_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True)
class SinkPolicy:
    """Limits of the buffer; seconds, rows, bytes. See the settings' group `sink`."""

    batch_rows: int = 1_000
    interval_s: float = 5.0
    min_interval_s: float = 1.0
    max_bytes: int = 512 * 1024 * 1024
    max_rows: int = 500_000

    @property
    def empty_interval_s(self) -> float:
        return self.interval_s * _EMPTY_INTERVALS


@dataclass(frozen=True, slots=True)
class Piece:
    """What one `add` brought: rows of one place, and the position after them."""

    place: Place
    rows: pa.Table
    position: Position
    bytes: int
    arrived_s: float
    assignment: int


@dataclass(frozen=True, slots=True)
class Flush:
    """One commit: rows and, per place, the position they start from and the one they end at."""

    rows: pa.Table
    base: Mapping[Place, Position | None]
    positions: Mapping[Place, Position]
    pieces: tuple[Piece, ...]
    bytes: int
    oldest_s: float
    started_s: float


@dataclass(slots=True)
class SinkBuffer:
    """Rows of one table between the log and the lake. Not thread-safe: for the event loop only.

    Contract: `assign` a place with the lake's position before adding to it; after `take` call
    exactly one of `committed` and `failed` with what it returned; `revoke` whenever.
    """

    schema: pa.Schema
    policy: SinkPolicy = field(default_factory=SinkPolicy)
    _pieces: deque[Piece] = field(default_factory=deque)
    _stored: dict[Place, Position | None] = field(default_factory=dict)
    _ahead: dict[Place, Position] = field(default_factory=dict)
    #: Number of the assignment a place is held under. A commit that lands after its place was
    #: assigned anew must not count: the rows are being read again.
    _assignment: dict[Place, int] = field(default_factory=dict)
    _assignments: int = 0
    _flight: Flush | None = None
    _rows: int = 0
    _bytes: int = 0
    _ready_s: float = 0.0

    @property
    def rows(self) -> int:
        """Rows waiting, without those on their way."""
        return self._rows

    @property
    def bytes(self) -> int:
        """Arrow bytes held, those on their way included."""
        return self._bytes + (0 if self._flight is None else self._flight.bytes)

    @property
    def full(self) -> bool:
        """True when reading should pause until a commit has landed."""
        return self.bytes >= self.policy.max_bytes

    @property
    def flying(self) -> Flush | None:
        """The commit on its way."""
        return self._flight

    def oldest_s(self) -> float | None:
        """When the oldest row not yet in the lake arrived; None when all are stored."""
        flying = [] if self._flight is None else [self._flight.oldest_s]
        return min([*flying, *(piece.arrived_s for piece in self._pieces)], default=None)

    def assign(self, place: Place, stored: Position | None) -> None:
        """Start on a place at the lake's position. Whatever was held for it is dropped."""
        self._drop(lambda other: other == place)
        self._stored[place] = stored
        self._ahead.pop(place, None)
        self._assignments += 1
        self._assignment[place] = self._assignments

    def next_position(self, place: Place) -> Position | None:
        """The position the next rows of a place must start from, None for a place never stored."""
        return self._ahead.get(place) or self._stored.get(place)

    def add(
        self,
        place: Place,
        rows: pa.Table | pa.RecordBatch,
        position: Position,
        now_s: float,
    ) -> None:
        """Take rows of an assigned place, in log order; `position` is the one after them.

        Rows may be none, when all records of a range were dropped. Raises `StaleWriterError` when
        the place is not assigned or `position` does not move forward: both would lose or repeat
        rows.
        """
        before = self.next_position(place)
        if place not in self._stored or (before is not None and not _after(position, before)):
            raise StaleWriterError(
                f"rows of {place} up to {position} do not follow {before}; assign the place with "
                "the lake's position and read from there",
                place=tuple(place),
                position=tuple(position),
                found=before,
            )
        table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
        piece = Piece(place, table, position, table.nbytes, now_s, self._assignment[place])
        self._pieces.append(piece)
        self._ahead[place] = position
        self._rows += rows.num_rows
        self._bytes += piece.bytes

    def wait_s(self, now_s: float) -> float | None:
        """Seconds until a commit is due, if nothing more arrives; 0: now. None: nothing to do."""
        if self._flight is not None or not self._pieces:
            return None
        policy = self.policy
        if self.full or self._rows >= policy.max_rows:
            return 0.0
        oldest_s = self._pieces[0].arrived_s
        if self._rows >= policy.batch_rows:
            due_s = now_s
        elif self._rows:
            first_s = next(piece.arrived_s for piece in self._pieces if piece.rows.num_rows)
            due_s = min(first_s + policy.interval_s, oldest_s + policy.empty_interval_s)
        else:
            due_s = oldest_s + policy.empty_interval_s
        return max(0.0, max(due_s, self._ready_s) - now_s)

    def due(self, now_s: float) -> bool:
        """True when a commit should start now."""
        return self.wait_s(now_s) == 0.0

    def take(self, now_s: float) -> Flush:
        """The next commit: the oldest pieces, up to `max_rows` (at least one piece).

        Raises `RuntimeError` when a commit is on its way or nothing waits.
        """
        if self._flight is not None or not self._pieces:
            raise RuntimeError("take() while a commit is on its way, or with nothing to commit")
        pieces: list[Piece] = []
        rows = 0
        while self._pieces:
            piece = self._pieces[0]
            if pieces and rows + piece.rows.num_rows > self.policy.max_rows:
                break
            pieces.append(self._pieces.popleft())
            rows += piece.rows.num_rows
        positions = {piece.place: piece.position for piece in pieces}
        size = sum(piece.bytes for piece in pieces)
        self._rows -= rows
        self._bytes -= size
        self._flight = Flush(
            self._together(pieces),
            {place: self._stored[place] for place in positions},
            positions,
            tuple(pieces),
            size,
            min(piece.arrived_s for piece in pieces),
            now_s,
        )
        return self._flight

    def committed(self, flush: Flush, now_s: float) -> None:
        """The commit landed: places that are still held go on from where it ends."""
        self._land(flush, now_s)
        for piece in self._still_ours(flush):
            self._stored[piece.place] = piece.position

    def failed(self, flush: Flush, now_s: float) -> None:
        """The commit is proven absent: its pieces wait again, before all others."""
        self._land(flush, now_s)
        for piece in reversed(list(self._still_ours(flush))):
            self._pieces.appendleft(piece)
            self._rows += piece.rows.num_rows
            self._bytes += piece.bytes

    def holds(self, flush: Flush, place: Place) -> bool:
        """True when `place` has been ours ever since its rows in `flush` were added."""
        return any(piece.place == place for piece in self._still_ours(flush))

    def revoke(self, lost: Callable[[Place], bool]) -> list[Place]:
        """Drop what is held for places of which `lost` is true; returns those that were ours.

        A commit on its way goes on: the lake refuses it if another worker has already moved.
        """
        gone = [place for place in self._stored if lost(place)]
        self._drop(lost)
        for place in gone:
            del self._stored[place], self._assignment[place]
            self._ahead.pop(place, None)
        return gone

    def _land(self, flush: Flush, now_s: float) -> None:
        if flush is not self._flight:
            raise RuntimeError("committed() or failed() with a flush that is not on its way")
        self._flight = None
        took_s = now_s - flush.started_s
        self._ready_s = max(flush.started_s + self.policy.min_interval_s,
                            flush.started_s + took_s / _BUSY_SHARE)  # fmt: skip

    def _still_ours(self, flush: Flush) -> Iterator[Piece]:
        for piece in flush.pieces:
            if self._assignment.get(piece.place) == piece.assignment:
                yield piece

    def _together(self, pieces: list[Piece]) -> pa.Table:
        filled = [piece.rows for piece in pieces if piece.rows.num_rows]
        return pa.concat_tables(filled) if filled else self.schema.empty_table()

    def _drop(self, lost: Callable[[Place], bool]) -> None:
        kept = [piece for piece in self._pieces if not lost(piece.place)]
        self._pieces = deque(kept)
        self._rows = sum(piece.rows.num_rows for piece in kept)
        self._bytes = sum(piece.bytes for piece in kept)


def _after(position: Position, before: Position) -> bool:
    return position.next_offset > before.next_offset and position.sequence >= before.sequence


def places_of(partitions: Collection[tuple[str, int]]) -> Callable[[Place], bool]:
    """A predicate for `revoke`: places of these (topic read, partition), whatever their epoch."""
    chosen = frozenset(partitions)
    return lambda place: (place.topic, place.partition) in chosen
