"""Hot rows of one place that arrived together, with what queries ask of them again and again.

A chunk never changes, so an index of it is made when it is first asked for, and only once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2.query.filters import Key
from k2.query.last_row import LastRow, Pair, last_of_each

_Ints = npt.NDArray[np.int64]
K = TypeVar("K")
V = TypeVar("V")


def _together(left: Mapping[K, V], right: Mapping[K, V], join: Callable[[V, V], V]) -> dict[K, V]:
    """Both; what both have joined."""
    found = {**left, **right}
    for key in left.keys() & right.keys():
        found[key] = join(left[key], right[key])
    return found


def _key(row: LastRow) -> Key:
    return row.key


@dataclass(frozen=True, eq=False)
class Chunk:
    """Rows of one place that arrived together.

    `rows`: K2's columns. `sequences`: their platform_sequence, rising. `first_s`/`last_s`:
    monotonic seconds of the first and last arrival. `added`: what the lake has beyond K2's columns.
    """

    rows: pa.Table
    sequences: _Ints
    first_s: float
    last_s: float
    added: pa.Table | None = None

    @property
    def last(self) -> int:
        return int(self.sequences[-1])

    @functools.cached_property
    def tie(self) -> tuple[int, str, str]:
        """log_partition, log_topic and log_epoch: all rows of a place have the same."""
        names = ("log_partition", "log_topic", "log_epoch")
        partition, topic, epoch = (self.rows[name][0].as_py() for name in names)
        return int(partition), str(topic), str(epoch)

    @functools.cached_property
    def exchanges(self) -> AbstractSet[str]:
        return frozenset(self.rows["exchange"].unique().to_pylist())

    @functools.cached_property
    def nbytes(self) -> int:
        more = 0 if self.added is None else int(self.added.nbytes)
        return int(self.rows.nbytes) + more + self.sequences.nbytes

    @functools.cached_property
    def times_us(self) -> _Ints:
        """Exchange timestamps, microseconds."""
        times: _Ints = self.rows["timestamp"].cast(pa.int64()).to_numpy()
        return times

    @functools.cached_property
    def bounds_us(self) -> tuple[int, int]:
        """Lowest and highest exchange timestamp, microseconds."""
        return int(self.times_us.min()), int(self.times_us.max())

    @functools.cached_property
    def _by_symbol(self) -> Mapping[str, _Ints]:
        """Positions of each symbol's rows, rising."""
        encoded = self.rows["symbol"].combine_chunks().dictionary_encode()
        names, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
        # Of 16 bits numpy makes a radix sort.
        small = codes.astype(np.uint16) if len(names) <= 1 << 16 else codes
        order = np.argsort(small, kind="stable")
        ends = np.cumsum(np.bincount(codes, minlength=len(names)))[:-1]
        return dict(zip(names, np.split(order, ends), strict=True))

    @property
    def symbols(self) -> AbstractSet[str]:
        return self._by_symbol.keys()

    @functools.cached_property
    def _last_rows(self) -> Mapping[Pair, LastRow]:
        return {row.pair: row for row in last_of_each(self.rows)}

    @functools.cached_property
    def borrowed(self) -> bool:
        """True when it keeps far more memory than its rows take."""
        return int(self.rows.get_total_buffer_size()) > 4 * int(self.rows.nbytes)

    def owned(self) -> Chunk:
        """The same rows in memory of their own."""
        every = np.arange(len(self.sequences))
        more = None if self.added is None else self.added.take(every)
        return replace(self, rows=self.rows.take(every).combine_chunks(), added=more)

    def below(self, sequence: int) -> int:
        """How many rows have a platform_sequence of at most `sequence`."""
        if sequence < self.sequences[0]:
            return 0
        return int(np.searchsorted(self.sequences, sequence, side="right"))

    def above(self, sequence: int, symbols: AbstractSet[str] | None = None) -> pa.Table:
        """The rows (of `symbols`) whose platform_sequence is above `sequence`."""
        return self._chosen(self.rows, sequence, symbols)

    def whole_above(self, sequence: int, symbols: AbstractSet[str] | None = None) -> pa.Table:
        """The same with the added columns."""
        rows = self.rows
        if self.added is not None:
            for named, column in zip(self.added.schema, self.added.columns, strict=True):
                rows = rows.append_column(named, column)
        return self._chosen(rows, sequence, symbols)

    def last_rows_above(self, sequence: int) -> Mapping[Pair, LastRow]:
        """The last of these rows of each (symbol, exchange), by time."""
        if not self.below(sequence):
            return self._last_rows
        # The last of all is the last of these too, unless it is not one of them.
        found = {
            pair: row
            for pair, row in self._last_rows.items()
            if row.key.platform_sequence > sequence
        }
        if len(found) < len(self._last_rows):
            names = {symbol for symbol, _ in self._last_rows.keys() - found.keys()}
            for row in last_of_each(self.above(sequence, names)):
                found.setdefault(row.pair, row)
        return found

    def joined(self, after: Chunk) -> Chunk:
        """The rows of both, of which `after` came later."""
        more = None
        if self.added is not None and after.added is not None:
            more = pa.concat_tables([self.added, after.added]).combine_chunks()
        made = Chunk(
            pa.concat_tables([self.rows, after.rows]).combine_chunks(),
            np.concatenate((self.sequences, after.sequences)),
            self.first_s,
            after.last_s,
            more,
        )
        made._remember(self, after)
        return made

    def _remember(self, left: Chunk, right: Chunk) -> None:
        """What is known of the left, mostly the larger, is not looked for again among all rows."""
        known = vars(left).keys()
        if "_by_symbol" in known:
            moved = {name: at + len(left.sequences) for name, at in right._by_symbol.items()}
            vars(self)["_by_symbol"] = _together(
                left._by_symbol, moved, lambda one, other: np.concatenate((one, other))
            )
        if "_last_rows" in known:
            vars(self)["_last_rows"] = _together(
                left._last_rows, right._last_rows, lambda one, other: max(one, other, key=_key)
            )

    def places_of(self, symbols: AbstractSet[str], sequence: int) -> _Ints:
        """Positions, rising, of the rows of `symbols` above `sequence`."""
        found = [self._by_symbol[symbol] for symbol in symbols & self.symbols]
        if not found:
            return np.empty(0, np.int64)
        places = found[0] if len(found) == 1 else np.sort(np.concatenate(found))
        first = self.below(sequence)
        return places[np.searchsorted(places, first) :] if first else places

    def _chosen(self, rows: pa.Table, sequence: int, symbols: AbstractSet[str] | None) -> pa.Table:
        if symbols is None or self.symbols <= symbols:
            return rows.slice(self.below(sequence))
        return rows.take(pa.array(self.places_of(symbols, sequence)))
