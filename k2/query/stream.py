"""From a picture of the tail to what is new since: rows once, in the log's order per partition.

A `Follower` remembers per place how far it has given rows. It pulls from the tail's pictures, so a
slow reader costs no memory: what the reader is too late for is counted and skipped.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from k2.lake.vector import Place
from k2.query.tail import TailView

_ORDER = [("timestamp", "ascending"), ("platform_sequence", "ascending")]


@dataclass(frozen=True, slots=True)
class News:
    """`rows`: what is new, by time and sequence; `skipped`: how many were left out, at least."""

    rows: pa.Table
    skipped: int


@dataclass(slots=True)
class Follower:
    """One reader of one table. `symbols`: None for all; `most`: rows of one piece of news.

    `begin`, and `news` where `waiting` says many, look through many rows: call them in a thread,
    one at a time.
    """

    symbols: frozenset[str] | None
    most: int
    _marks: dict[Place, int] = field(default_factory=dict)

    def begin(self, view: TailView, newest: int) -> pa.Table:
        """The newest rows that are hot now; whatever comes after this picture is news."""
        self._marks = {place: hot.high for place, hot in view.places.items()}
        if newest == 0:
            return view.schema.empty_table()
        tables = [self._wanted(chunk.rows) for hot in view.places.values() for chunk in hot.chunks]
        rows = _sorted(view, tables)
        return rows.slice(max(0, rows.num_rows - newest))

    def waiting(self, view: TailView) -> int:
        """Rows `news` would have to look at."""
        places = view.places.items()
        return sum(hot.count_above(self._marks.get(place, hot.low)) for place, hot in places)

    def news(self, view: TailView) -> News:
        """What the picture has above what was given; the newest `most` rows of it."""
        skipped, tables = 0, []
        for place, hot in view.places.items():
            # A partition that was not there before begins at what the lake had of it.
            mark = self._marks.get(place, hot.low)
            if hot.high <= mark:
                continue
            skipped += max(0, hot.low - mark)
            tables += [self._wanted(chunk.above(mark)) for chunk in hot.chunks_above(mark)]
            self._marks[place] = hot.high
        rows = _sorted(view, tables)
        late = max(0, rows.num_rows - self.most)
        return News(rows.slice(late), skipped + late)

    def _wanted(self, rows: pa.Table) -> pa.Table:
        if self.symbols is None:
            return rows
        return rows.filter(pc.is_in(rows["symbol"], pa.array(sorted(self.symbols))))


def _sorted(view: TailView, tables: list[pa.Table]) -> pa.Table:
    filled = [table for table in tables if table.num_rows]
    if not filled:
        return view.schema.empty_table()
    return pa.concat_tables(filled).sort_by(_ORDER)
