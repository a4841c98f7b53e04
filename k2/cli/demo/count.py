"""Every id an exchange sent against every id in the lake; columns, because there are millions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyiceberg.catalog import Catalog

_Ids = npt.NDArray[np.int64]
#: Channel of the exchange's streams, and the table and column its ids are stored in.
_KINDS: Final = (("trades", "trade_id", "trade"), ("quotes", "quote_id", "bookTicker"))


@dataclass(frozen=True, slots=True)
class Count:
    """Ids sent and ids stored, over all symbols of one kind; `doubled` rows have an id again."""

    sent: int = 0
    stored: int = 0
    missing: int = 0
    doubled: int = 0
    unknown: int = 0

    @property
    def whole(self) -> bool:
        """True when exactly what was sent is stored, each once."""
        return not (self.missing or self.doubled or self.unknown)

    def __add__(self, other: Count) -> Count:
        return Count(
            self.sent + other.sent,
            self.stored + other.stored,
            self.missing + other.missing,
            self.doubled + other.doubled,
            self.unknown + other.unknown,
        )


def compare(sent: _Ids, stored: _Ids) -> Count:
    """One symbol's ids; `sent` may repeat one."""
    asked, known = np.unique(sent), np.unique(stored)
    return Count(
        sent=len(asked),
        stored=len(stored),
        missing=len(np.setdiff1d(asked, known, assume_unique=True)),
        doubled=len(stored) - len(known),
        unknown=len(np.setdiff1d(known, asked, assume_unique=True)),
    )


def counts(sent: Mapping[str, _Ids], catalog: Catalog) -> dict[str, Count]:
    """By table. `sent`: ids by stream (`btcusdt@trade`); blocking."""
    found = {}
    for table, column, channel in _KINDS:
        stored = stored_ids(catalog, table, column)
        asked = {
            stream.partition("@")[0].upper(): ids
            for stream, ids in sent.items()
            if stream.partition("@")[2] == channel
        }
        none = np.empty(0, np.int64)
        symbols = asked.keys() | stored.keys()
        found[table] = sum(
            (compare(asked.get(one, none), stored.get(one, none)) for one in symbols), Count()
        )
    return found


def stored_ids(catalog: Catalog, table: str, column: str) -> dict[str, _Ids]:
    """Ids of every row of a market table, by symbol."""
    scan = catalog.load_table(f"market_data.{table}").scan(selected_fields=("symbol", column))
    parts: dict[str, list[_Ids]] = defaultdict(list)
    for batch in scan.to_arrow_batch_reader():
        symbols = batch.column("symbol").dictionary_encode()
        ids, codes = batch.column(column).cast(pa.int64()).to_numpy(), symbols.indices
        for code, symbol in enumerate(symbols.dictionary.to_pylist()):
            parts[symbol].append(ids[codes.to_numpy() == code])
    return {symbol: np.concatenate(found) for symbol, found in parts.items()}
