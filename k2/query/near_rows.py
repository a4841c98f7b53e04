"""The newest rows of a symbol that data files have, kept.

Of a quiet symbol memory holds less than a page, and who watches it asks again and again. Files
never change: as long as the same ones are pinned, they have the same rows.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from k2.lake.reader import LakeFile
from k2.query.asked import QUICK_ROWS, RecordsQuery
from k2.query.chunk import Chunk
from k2.query.cold import TIE_BREAK, ColdSnapshot
from k2.query.encode import JSON_COLUMNS
from k2.query.hot_rows import HotRows
from k2.query.json_text import INLINE_CELLS, json_texts
from k2.query.kept import KeptAnswers
from k2.query.row_texts import RowTexts

#: Of one entry, and of each table in it, besides rows: paths, names, Arrow's own objects.
_ENTRY_BYTES: Final = 8_192
_TABLE_BYTES: Final = 16_384
#: Of a row made JSON, about, besides what its columns take.
_ROW_TEXT_BYTES: Final = 800
#: Groups of files of one question; who needs more has a slow question.
_MOST_GROUPS: Final = 3


@dataclass(frozen=True, eq=False)
class ColdChunk(Chunk):
    """Rows of one place that data files have; when they arrived means nothing here."""

    @functools.cached_property
    def texts(self) -> list[bytes]:
        """One JSON object per row. Not by their place, as of hot rows: a correction is a new file
        with another row in the same place."""
        return json_texts(self.rows, parse_json=JSON_COLUMNS)


@dataclass(frozen=True, slots=True)
class Nearest:
    """The first rows of a question in some files, by place.

    `edge_us`: those before were not looked for, µs, for so many were known already; None: all were.
    """

    chunks: tuple[ColdChunk, ...]
    edge_us: int | None = None

    def serves(self, edge_us: int | None) -> bool:
        """True when no row from `edge_us` on is missing; None: no row at all."""
        return self.edge_us is None or (edge_us is not None and edge_us >= self.edge_us)

    def table(self, schema: pa.Schema) -> pa.Table:
        """All of them, in any order."""
        return pa.concat_tables([schema.empty_table(), *(chunk.rows for chunk in self.chunks)])

    @property
    def nbytes(self) -> int:
        """With the texts that are made of them."""
        rows = sum(len(chunk.sequences) for chunk in self.chunks)
        tables = sum(chunk.nbytes for chunk in self.chunks)
        fixed = _ENTRY_BYTES + _TABLE_BYTES * len(self.chunks)
        return fixed + 2 * tables + _ROW_TEXT_BYTES * rows


class NearRows:
    """What was read of one table, for the questions asked last, up to `max_bytes`. Thread-safe.

    A question reads its files in groups, the nearest first; each is kept for itself (`number`).
    """

    def __init__(self, max_bytes: int) -> None:
        self._kept: KeptAnswers[Nearest] = KeptAnswers(max_bytes)

    @property
    def nbytes(self) -> int:
        return self._kept.nbytes

    @staticmethod
    def takes(snapshot: ColdSnapshot, query: RecordsQuery) -> bool:
        """True for the newest rows of symbols: no time bounds, no further conditions. And for files
        that nobody deleted rows from."""
        return (
            snapshot.metadata_location is None
            and query.symbols is not None
            and query.newest_first
            and query.limit <= QUICK_ROWS
            and query.bounds.start_us is None
            and query.bounds.end_us is None
            and not query.filters
        )

    def get(
        self, query: RecordsQuery, number: int, files: Sequence[LakeFile], edge_us: int | None
    ) -> Nearest | None:
        """The first rows of `query` from `edge_us` on in its group `number` of files.

        None: not known.
        """
        known = self._kept.get((query, number), _paths(files))
        return known if known is not None and known.serves(edge_us) else None

    def keep(
        self,
        query: RecordsQuery,
        number: int,
        files: Sequence[LakeFile],
        edge_us: int | None,
        rows: pa.Table,
    ) -> None:
        """`rows` are the first of `query` from `edge_us` on in `files`."""
        if number >= _MOST_GROUPS:
            return
        if any(rows[name].null_count for name in (query.time_column, *TIE_BREAK)):
            return  # another writer's, of no time or place
        made = Nearest(_by_place(rows), edge_us)
        if rows.num_rows * rows.num_columns > INLINE_CELLS:
            for chunk in made.chunks:
                _ = chunk.texts
        self._kept.put((query, number), _paths(files), made, made.nbytes)

    def clear(self) -> None:
        """Let go of all of them."""
        self._kept.clear()


def texts_of(rows: HotRows, hot: RowTexts) -> list[bytes]:
    """One JSON object per row, of memory and of files, in the order of `rows`."""
    cold = np.array([isinstance(chunk, ColdChunk) for chunk in rows.chunks])
    made = iter(hot.of(rows.picked(np.flatnonzero(~cold[rows.which]))))
    found = []
    for number, at in zip(rows.which.tolist(), rows.places.tolist(), strict=True):
        chunk = rows.chunks[number]
        found.append(chunk.texts[at] if isinstance(chunk, ColdChunk) else next(made))
    return found


def _paths(files: Sequence[LakeFile]) -> tuple[str, ...]:
    return tuple(file.path for file in files)


def _by_place(rows: pa.Table) -> tuple[ColdChunk, ...]:
    sequences = rows["platform_sequence"].to_numpy()
    ties = zip(*(rows[name].to_pylist() for name in TIE_BREAK[1:]), strict=True)
    places: defaultdict[tuple[int, str, str], list[int]] = defaultdict(list)
    for index, tie in enumerate(ties):
        places[tie].append(index)
    found = []
    for indexes in places.values():
        own = np.array(indexes)[np.argsort(sequences[indexes], kind="stable")]
        found.append(ColdChunk(rows.take(pa.array(own)), sequences[own], 0.0, 0.0))
    return tuple(found)
