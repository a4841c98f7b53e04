"""The last row of each symbol, from hot rows and as few files as can be proven."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from k2.lake.reader import LakeFile
from k2.query.cold import TIE_BREAK, Bounds, ColdSnapshot
from k2.query.filters import Key, key_of
from k2.query.per_file import PerFile, last_rows
from k2.query.seam import Pin

_ORDER: Final = [(name, "descending") for name in ("timestamp", *TIE_BREAK)]


@dataclass(frozen=True, slots=True)
class LastRow:
    """Where the last row of one (symbol, exchange) is."""

    pair: tuple[str, str]
    key: Key
    rows: pa.Table
    index: int


def last_rows_of(
    cursor: duckdb.DuckDBPyConnection, snapshot: ColdSnapshot, file: LakeFile
) -> tuple[LastRow, ...]:
    """The last row of each (symbol, exchange) of one data file."""
    return tuple(_each(last_rows(cursor, snapshot, snapshot.scan([file]))))


def latest(
    cursor: duckdb.DuckDBPyConnection,
    pinned: Pin[ColdSnapshot],
    files: PerFile[tuple[LastRow, ...]],
    symbols: frozenset[str] | None,
) -> pa.Table:
    """The last row of each (symbol, exchange), sorted. Each file is asked once in its life."""
    bounds = Bounds(symbols)
    snapshot = pinned.snapshot
    found: dict[tuple[str, str], LastRow] = {}
    for chunk, sequence in pinned.hot_chunks(bounds):
        _collect(found, _each(_newest_of_each(chunk.above(sequence), symbols)), symbols)
    if snapshot.metadata_location is not None:
        rows = last_rows(cursor, snapshot, snapshot.scan(snapshot.files))
        _collect(found, _each(rows), symbols)
    else:
        for file in snapshot.select(bounds):
            if not _is_behind(file, found, symbols):
                _collect(found, files.get(cursor, snapshot, file), symbols)
        files.keep(snapshot.files)
    tables = [found[pair].rows.slice(found[pair].index, 1) for pair in sorted(found)]
    return pa.concat_tables([snapshot.columns.empty_table(), *tables])


def _is_behind(
    file: LakeFile, found: Mapping[tuple[str, str], LastRow], symbols: frozenset[str] | None
) -> bool:
    """True when later rows are known of all that the file can hold of `symbols`."""
    if symbols is None or file.times_us is None or file.exchanges is None:
        return False
    exchange, other = file.exchanges
    if exchange != other:
        return False
    known = [found.get((one, exchange)) for one in symbols if file.may_hold((one,))]
    return all(row is not None and row.key.time_us > file.times_us[1] for row in known)


def _collect(
    found: dict[tuple[str, str], LastRow],
    rows: Iterable[LastRow],
    symbols: frozenset[str] | None,
) -> None:
    for row in rows:
        if symbols is not None and row.pair[0] not in symbols:
            continue
        best = found.get(row.pair)
        if best is None or row.key > best.key:
            found[row.pair] = row


def _each(rows: pa.Table) -> Iterator[LastRow]:
    pairs = zip(rows["symbol"].to_pylist(), rows["exchange"].to_pylist(), strict=True)
    for index, pair in enumerate(pairs):
        yield LastRow(pair, key_of(rows, index, "timestamp"), rows, index)


def _newest_of_each(rows: pa.Table, symbols: frozenset[str] | None) -> pa.Table:
    """The last row of each (symbol, exchange) of rows in memory."""
    if symbols is not None:
        rows = rows.filter(pc.is_in(rows["symbol"], value_set=pa.array(sorted(symbols))))
    if not rows.num_rows:
        return rows
    order = pc.sort_indices(rows, sort_keys=_ORDER)
    pairs = rows.select(["symbol", "exchange"]).take(order)
    keys = pc.binary_join_element_wise(pairs["symbol"], pairs["exchange"], "\x1f")
    _, first = np.unique(keys.to_numpy(zero_copy_only=False).astype(str), return_index=True)
    return rows.take(order.take(pa.array(first)))
