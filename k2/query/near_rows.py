"""The newest rows of a symbol that data files have, kept.

Of a quiet symbol memory holds less than a page, and who watches it asks again and again. Files
never change: as long as the same ones are pinned, they have the same rows.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pyarrow as pa

from k2.lake.reader import LakeFile
from k2.query.asked import RecordsQuery
from k2.query.chunk import Chunk
from k2.query.cold import TIE_BREAK, ColdSnapshot
from k2.query.encode import JSON_COLUMNS
from k2.query.hot_rows import HotRows
from k2.query.json_text import json_texts
from k2.query.kept import KeptAnswers
from k2.query.row_texts import RowTexts

#: Of a row made JSON, about.
_TEXT_BYTES: Final = 800
#: The rows of larger pages are not asked for again and again.
_MOST_ROWS: Final = 1_001


@dataclass(frozen=True, eq=False)
class ColdChunk(Chunk):
    """Rows of one place that data files have."""

    @functools.cached_property
    def texts(self) -> list[bytes]:
        """One JSON object per row. Not by their place, as of hot rows: a correction is a new file
        with another row in the same place."""
        return json_texts(self.rows, parse_json=JSON_COLUMNS)


@dataclass(frozen=True, slots=True)
class Nearest:
    """The first `rows` of a question in some files, in its order; the same by place."""

    rows: pa.Table
    chunks: tuple[ColdChunk, ...]


class NearRows:
    """What was read of one table, for the questions asked last, up to `max_bytes`. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._kept: KeptAnswers[Nearest] = KeptAnswers(max_bytes)

    @staticmethod
    def takes(snapshot: ColdSnapshot, query: RecordsQuery) -> bool:
        """True for the newest rows of symbols, whenever that is, of files nobody deleted from."""
        return (
            snapshot.metadata_location is None
            and query.symbols is not None
            and query.newest_first
            and query.limit <= _MOST_ROWS
            and query.bounds.start_us is None
            and query.bounds.end_us is None
            and not query.filters
        )

    def get(self, query: RecordsQuery, files: Sequence[LakeFile]) -> Nearest | None:
        """The first rows of `query` in `files`; None: not known."""
        return self._kept.get(query, _paths(files))

    def keep(self, query: RecordsQuery, files: Sequence[LakeFile], rows: pa.Table) -> None:
        """`rows` are the first of `query` in `files`, in its order."""
        if any(rows[name].null_count for name in TIE_BREAK):
            return  # another writer's, of no place
        nbytes = rows.nbytes + _TEXT_BYTES * rows.num_rows
        self._kept.put(query, _paths(files), Nearest(rows, _by_place(rows)), nbytes)

    def clear(self) -> None:
        """Let go of all of them."""
        self._kept.clear()


def texts_of(rows: HotRows, hot: RowTexts) -> list[bytes]:
    """One JSON object per row, of memory and of files, in the order of `rows`."""
    cold = np.array([isinstance(chunk, ColdChunk) for chunk in rows.chunks])[rows.which]
    own = np.flatnonzero(~cold)
    made = iter(
        hot.of(
            replace(
                rows, which=rows.which[own], places=rows.places[own], times_us=rows.times_us[own]
            )
        )
    )
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
