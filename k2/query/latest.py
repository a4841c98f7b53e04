"""The last row of each symbol, from hot rows and as few files as can be proven."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2.lake.reader import LakeFile
from k2.query.bounds import Bounds
from k2.query.cold import ColdSnapshot
from k2.query.last_row import LastRow, Pair, each_row, pair_codes
from k2.query.per_file import PerFile, last_rows
from k2.query.seam import Pin


def last_rows_of(
    cursor: duckdb.DuckDBPyConnection, snapshot: ColdSnapshot, file: LakeFile
) -> tuple[LastRow, ...]:
    """The last row of each (symbol, exchange) of one data file."""
    reader = snapshot.reader([file])
    if reader is None:
        return tuple(each_row(last_rows(cursor, snapshot, snapshot.scan([file]))))
    asked = _LastOfEach()
    looked = reader.look(reader.groups([file], asked), asked)
    rows = reader.take(looked, looked.places)
    last: dict[Pair, LastRow] = {}
    _collect(last, each_row(rows), None)
    own = table_of_rows(snapshot.columns, list(last.values()))
    return tuple(each_row(own))


class _LastOfEach:
    """The last rows of each pair, for `ColdRows`: all of its last time, of which one is the last.

    To look at all columns of the order would cost more than the few rows too many.
    """

    columns = ("symbol", "exchange", "timestamp")
    bounds = Bounds()

    def rows(self, keys: pa.Table) -> npt.NDArray[np.int64]:
        codes = pair_codes(keys)
        times = keys["timestamp"].cast(pa.int64()).to_numpy()
        last = np.full(int(codes.max(initial=-1)) + 1, np.iinfo(np.int64).min)
        np.maximum.at(last, codes, times)
        return np.flatnonzero(times == last[codes])


def latest_hot(pinned: Pin[ColdSnapshot], symbols: frozenset[str]) -> tuple[LastRow, ...] | None:
    """The rows of `latest` when no file can have a later one, without I/O; else None."""
    bounds = Bounds(symbols)
    found = _hot(pinned, bounds)
    known_us = _known_us(found, symbols)
    files = pinned.snapshot.select(bounds)
    if not all(_is_behind(file, found, symbols, known_us) for file in files):
        return None
    return _in_order(found)


def latest(
    cursor: duckdb.DuckDBPyConnection,
    pinned: Pin[ColdSnapshot],
    files: PerFile[tuple[LastRow, ...]],
    symbols: frozenset[str] | None,
) -> pa.Table:
    """The last row of each (symbol, exchange), sorted. Each file is asked once in its life."""
    bounds = Bounds(symbols)
    snapshot = pinned.snapshot
    found = _hot(pinned, bounds)
    if snapshot.metadata_location is not None:
        rows = last_rows(cursor, snapshot, snapshot.scan(snapshot.files))
        _collect(found, each_row(rows), symbols)
    else:
        known_us = _known_us(found, symbols)
        for file in snapshot.select(bounds):
            if _is_behind(file, found, symbols, known_us):
                continue
            if _collect(found, files.get(cursor, snapshot, file), symbols):
                known_us = _known_us(found, symbols)
        files.keep(snapshot.files)
    return table_of_rows(snapshot.columns, _in_order(found))


def _hot(pinned: Pin[ColdSnapshot], bounds: Bounds) -> dict[Pair, LastRow]:
    found: dict[Pair, LastRow] = {}
    for chunk, sequence in pinned.hot_chunks(bounds):
        _collect(found, chunk.last_rows_above(sequence).values(), bounds.symbols)
    return found


def _in_order(found: Mapping[Pair, LastRow]) -> tuple[LastRow, ...]:
    return tuple(found[pair] for pair in sorted(found))


def table_of_rows(columns: pa.Schema, rows: Sequence[LastRow]) -> pa.Table:
    """The rows themselves. Those of one chunk or file are taken in one go."""
    places: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(id(row.rows), []).append(place)
    tables = [
        rows[own[0]].rows.take(pa.array([rows[place].index for place in own]))
        for own in places.values()
    ]
    back = np.argsort([place for own in places.values() for place in own])
    together = pa.concat_tables([columns.empty_table(), *tables])
    return together.take(pa.array(back, pa.int64())).combine_chunks()


def _known_us(found: Mapping[Pair, LastRow], symbols: frozenset[str] | None) -> Mapping[str, int]:
    """By exchange that has a row of each of `symbols`: when the oldest of these rows is of."""
    times: dict[str, list[int]] = {}
    for (_, exchange), row in found.items():
        times.setdefault(exchange, []).append(row.key.time_us)
    wanted = None if symbols is None else len(symbols)
    return {exchange: min(us) for exchange, us in times.items() if len(us) == wanted}


def _is_behind(
    file: LakeFile,
    found: Mapping[Pair, LastRow],
    symbols: frozenset[str] | None,
    known_us: Mapping[str, int],
) -> bool:
    """True when later rows are known of all that the file can hold of `symbols`."""
    if symbols is None or file.times_us is None or file.exchanges is None:
        return False
    exchange, other = file.exchanges
    if exchange != other:
        return False
    end_us = file.times_us[1]
    if exchange in known_us and end_us < known_us[exchange]:
        # Most files end before every row that is known; only others are looked at closely.
        return True
    known = [found.get((one, exchange)) for one in symbols if file.may_hold((one,))]
    return all(row is not None and row.key.time_us > end_us for row in known)


def _collect(
    found: dict[Pair, LastRow],
    rows: Iterable[LastRow],
    symbols: frozenset[str] | None,
) -> bool:
    """Keep the later ones; True when there were any."""
    changed = False
    for row in rows:
        if symbols is not None and row.pair[0] not in symbols:
            continue
        best = found.get(row.pair)
        if best is None or row.key > best.key:
            found[row.pair] = row
            changed = True
    return changed
