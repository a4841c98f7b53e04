"""Hot rows as JSON, each made once: the next question for the same symbol wants most of them again.

A record's place never holds another record, so what was made of it stays right until it is let go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from k2.query.chunk import Chunk
from k2.query.encode import JSON_COLUMNS
from k2.query.hot_rows import HotRows
from k2.query.json_text import json_texts
from k2.query.last_row import LastRow

#: Of a chunk this small all rows are made at once: that costs little more than a few of them, and
#: others will ask for the rest of what has just come.
_WHOLE_ROWS: Final = 1_000
#: A key is a sequence and the number of a place.
_PLACE_BITS: Final = 20


class RowTexts:
    """The texts of one table's hot rows, up to `max_bytes`. For one thread."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._known: dict[int, bytes] = {}
        self._held = 0
        self._places: dict[tuple[int, str, str], int] = {}

    @property
    def nbytes(self) -> int:
        return self._held

    def clear(self) -> None:
        """Let go of all of them."""
        self._known.clear()
        self._held = 0

    def of(self, rows: HotRows) -> list[bytes]:
        """One JSON object per row, in the order of `rows`."""
        numbers = np.array([self._number(chunk.tie) for chunk in rows.chunks], np.int64)
        keys = (rows.sequences() << _PLACE_BITS | numbers[rows.which]).tolist()

        def make(missing: list[int]) -> dict[int, bytes]:
            made: dict[int, bytes] = {}
            for number in np.unique(rows.which[missing]).tolist():
                own = [index for index in missing if rows.which[index] == number]
                made |= self._make(rows.chunks[number], rows.places[own])
            return made

        return self._filled(keys, make)

    def of_last(self, rows: Sequence[LastRow]) -> list[bytes]:
        """The same of the last rows of pairs."""
        keys = [row.key.platform_sequence << _PLACE_BITS | self._number(row.key.place)
                for row in rows]  # fmt: skip
        return self._filled(
            keys, lambda missing: self._make_last([rows[index] for index in missing])
        )

    def _filled(
        self, keys: list[int], make: Callable[[list[int]], dict[int, bytes]]
    ) -> list[bytes]:
        """The text of each key. `make`: those at some indexes, and others, by key."""
        found = [self._known.get(key) for key in keys]
        missing = [index for index, text in enumerate(found) if text is None]
        made = make(missing) if missing else {}
        self._keep(made)
        return [made[key] if text is None else text for key, text in zip(keys, found, strict=True)]

    def _make(self, chunk: Chunk, places: np.ndarray) -> dict[int, bytes]:
        if len(chunk.sequences) <= _WHOLE_ROWS:
            places = np.arange(len(chunk.sequences))
        number = self._number(chunk.tie)
        # Chunks are merged: some of its rows were made in the one they came in.
        fresh, keys = self._unknown(chunk.sequences[places] << _PLACE_BITS | number)
        return _texts(chunk.rows, places[fresh], keys)

    def _make_last(self, rows: Iterable[LastRow]) -> dict[int, bytes]:
        # All rows of the tables they are in, where those are small: others will ask for them.
        tables: dict[int, tuple[LastRow, list[int]]] = {}
        for row in rows:
            _, places = tables.setdefault(id(row.rows), (row, []))
            places.append(row.index)
        parts, numbers = [], []
        for row, places in tables.values():
            small = row.rows.num_rows <= _WHOLE_ROWS
            parts.append(row.rows if small else row.rows.take(pa.array(places)))
            numbers.append(self._number(row.key.place))
        together = pa.concat_tables(parts)
        sequences = together["platform_sequence"].to_numpy()
        own = np.repeat(numbers, [part.num_rows for part in parts])
        fresh, keys = self._unknown(sequences << _PLACE_BITS | own)
        return _texts(together, fresh, keys)

    def _unknown(self, keys: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """Which of `keys` there is no text of yet: their positions, and they themselves."""
        every = keys.tolist()
        fresh = [index for index, key in enumerate(every) if key not in self._known]
        return np.array(fresh, np.int64), [every[index] for index in fresh]

    def _keep(self, made: dict[int, bytes]) -> None:
        self._held += sum(map(len, made.values()))
        self._known |= made
        while self._held > self._max_bytes:
            # The one that was made first.
            self._held -= len(self._known.pop(next(iter(self._known))))

    def _number(self, place: tuple[int, str, str]) -> int:
        return self._places.setdefault(place, len(self._places))


def _texts(rows: pa.Table, places: np.ndarray, keys: Sequence[int]) -> dict[int, bytes]:
    """The rows at `places` by key."""
    texts = json_texts(rows.take(pa.array(places)), parse_json=JSON_COLUMNS)
    return dict(zip(keys, texts, strict=True))
