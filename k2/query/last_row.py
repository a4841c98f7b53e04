"""The last row of each (symbol, exchange) of some rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2.query.cold import TIE_BREAK
from k2.query.filters import Key

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class LastRow:
    """Where the last row of one (symbol, exchange) is, and its place in the table's order."""

    pair: Pair
    key: Key
    rows: pa.Table
    index: int


def each_row(rows: pa.Table) -> Iterator[LastRow]:
    """The rows of a table that has one of each pair."""
    pairs = zip(rows["symbol"].to_pylist(), rows["exchange"].to_pylist(), strict=True)
    times = rows["timestamp"].cast(pa.int64()).to_pylist()
    ties = (rows[name].to_pylist() for name in TIE_BREAK)
    keys = map(Key, times, *ties)
    for index, (pair, key) in enumerate(zip(pairs, keys, strict=True)):
        yield LastRow(pair, key, rows, index)


def pair_codes(rows: pa.Table) -> npt.NDArray[np.int64]:
    """The same small number for each row of a (symbol, exchange)."""
    symbols, exchanges = (
        rows[name].combine_chunks().dictionary_encode() for name in ("symbol", "exchange")
    )
    codes = symbols.indices.cast(pa.int64()).to_numpy() * len(exchanges.dictionary)
    together: npt.NDArray[np.int64] = codes + exchanges.indices.to_numpy()
    return together


def last_of_each(rows: pa.Table) -> Iterator[LastRow]:
    """The last row of each pair: of equal times the one that came last.

    `rows` are of one place, in the order of their platform_sequence.
    """
    if not rows.num_rows:
        return iter(())
    codes = pair_codes(rows)
    # Stable, and nearly in order already: far cheaper than to sort by both at once.
    order = np.argsort(rows["timestamp"].cast(pa.int64()).to_numpy(), kind="stable")
    order = order[np.argsort(codes[order], kind="stable")]
    last = np.append(codes[order][1:] != codes[order][:-1], True)
    return each_row(rows.take(pa.array(order[last])))
