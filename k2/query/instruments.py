"""What instruments were when something happened: reference data as of the time of each row."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

CURRENCY: Final = "currency"
#: What reference data says of an instrument that a record does not say itself.
FACTS: Final = (
    "base_asset",
    "quote_asset",
    "tick_size",
    "lot_size",
    "min_notional",
    "name",
    "isin",
    "status",
)
#: Columns of a statement: about which instrument, since when it holds, when we read it, what it is.
STATEMENT: Final = (
    "exchange",
    "symbol",
    "timestamp",
    "receive_timestamp",
    "message_id",
    CURRENCY,
    *FACTS,
)

_Times = npt.NDArray[np.int64]


class Instruments:
    """Statements of reference data, by instrument and time. `statements`: columns `STATEMENT`.

    Any order, and the same statement more than once, makes no difference. Of two that hold from
    the same time the one read later counts.
    """

    def __init__(self, statements: pa.Table) -> None:
        keys = ("exchange", "symbol", "timestamp", "receive_timestamp", "message_id")
        rows = statements.sort_by([(name, "ascending") for name in keys]).combine_chunks()
        self._rows = rows.filter(_first(rows["message_id"]))
        self._since: _Times = _int64(self._rows["timestamp"])
        self._spans = _spans(self._rows)

    @property
    def statements(self) -> int:
        """How many different statements there are."""
        return len(self._since)

    def __len__(self) -> int:
        """How many instruments are known."""
        return len(self._spans)

    def at(self, exchanges: pa.Array, symbols: pa.Array, times_us: _Times) -> pa.Table:
        """What held for each row at its time; null where nothing had been said yet."""
        found = np.full(len(times_us), -1, np.int64)
        for pair, rows in _by_pair(exchanges, symbols):
            start, stop = self._spans.get(pair, (0, 0))
            if start == stop:
                continue
            place = np.searchsorted(self._since[start:stop], times_us[rows], side="right") - 1
            found[rows] = np.where(place >= 0, start + place, -1)
        facts = self._rows.select([CURRENCY, *FACTS])
        return facts.take(pa.array(found, pa.int64(), mask=found < 0))


def _first(ids: pa.ChunkedArray) -> pa.Array:
    """Which rows are not the same statement as the row before."""
    codes = _encoded(ids).indices.to_numpy()
    return pa.array(np.diff(codes, prepend=-1) != 0)


def _spans(rows: pa.Table) -> dict[tuple[str, str], tuple[int, int]]:
    """First and one past the last row of each (exchange, symbol) of sorted rows."""
    return {
        pair: (int(places[0]), int(places[-1]) + 1)
        for pair, places in _by_pair(rows["exchange"], rows["symbol"])
    }


def _by_pair(
    exchanges: pa.ChunkedArray, symbols: pa.ChunkedArray
) -> list[tuple[tuple[str, str], npt.NDArray[np.int64]]]:
    """(exchange, symbol) and the rows that have it."""
    if not len(symbols):
        return []
    first, second = (_encoded(column) for column in (exchanges, symbols))
    codes = first.indices.to_numpy().astype(np.int64) * len(second.dictionary)
    codes += second.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    cuts = np.flatnonzero(np.diff(codes[order])) + 1
    names = first.dictionary.to_pylist(), second.dictionary.to_pylist()
    return [
        ((names[0][code // len(names[1])], names[1][code % len(names[1])]), rows)
        for rows in np.split(order, cuts)
        for code in (int(codes[rows[0]]),)
    ]


def _encoded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(whole, pa.ChunkedArray):
        whole = pa.concat_arrays(whole.chunks)
    return whole.dictionary_encode()


def _int64(column: pa.ChunkedArray) -> _Times:
    values: _Times = column.cast(pa.timestamp("us")).cast(pa.int64()).to_numpy()
    return values
