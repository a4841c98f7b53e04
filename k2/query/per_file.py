"""What can be known of a data file once and for all: its symbols, and its last row of each.

Data files never change, so each is asked at most once, and only when an answer needs it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Final, Generic, TypeVar

import duckdb
import pyarrow as pa

from k2.lake.reader import LakeFile
from k2.query.cold import TIE_BREAK, ColdSnapshot, column_list
from k2.query.last_row import Pair

T = TypeVar("T")

#: Files that are kept beside those of the snapshot last asked about.
_OTHERS: Final = 4_096


class PerFile(Generic[T]):
    """Values by file, of the files of the snapshots last asked about."""

    def __init__(
        self, ask: Callable[[duckdb.DuckDBPyConnection, ColdSnapshot, LakeFile], T]
    ) -> None:
        self._ask = ask
        self._known: dict[str, T] = {}
        self._lock = threading.Lock()

    def get(self, cursor: duckdb.DuckDBPyConnection, snapshot: ColdSnapshot, file: LakeFile) -> T:
        """The value of one file. Two queries may ask at once; neither waits for the other."""
        known = self._known.get(file.path)
        if known is None:
            known = self._ask(cursor, snapshot, file)
            with self._lock:
                self._known[file.path] = known
        return known

    def keep(self, files: Collection[LakeFile]) -> None:
        """Forget files that are not in `files`, the first ones asked first, but for some thousand:
        questions about the past have other files."""
        if len(self._known) <= len(files) + _OTHERS:
            return
        paths = {file.path for file in files}
        with self._lock:
            others = [path for path in self._known if path not in paths]
            for path in others[: max(0, len(others) - _OTHERS)]:
                del self._known[path]


def symbols_of(
    cursor: duckdb.DuckDBPyConnection, snapshot: ColdSnapshot, file: LakeFile
) -> frozenset[Pair]:
    """The (exchange, symbol) pairs of a file."""
    if file.symbols and file.exchanges and len({*file.symbols}) == len({*file.exchanges}) == 1:
        # Bounds of a single value say it all.
        return frozenset(((file.exchanges[0], file.symbols[0]),))
    return exchange_symbols(cursor, snapshot.scan([file]))


def exchange_symbols(cursor: duckdb.DuckDBPyConnection, scan: str | None) -> frozenset[Pair]:
    """Distinct pairs of a scan."""
    if scan is None:
        return frozenset()
    sql = f"SELECT DISTINCT exchange, symbol FROM {scan}"  # noqa: S608
    return frozenset((row[0], row[1]) for row in cursor.execute(sql).fetchall())


def last_rows(
    cursor: duckdb.DuckDBPyConnection, snapshot: ColdSnapshot, scan: str | None
) -> pa.Table:
    """The last row of each (exchange, symbol) of a scan, all columns."""
    if scan is None:
        return snapshot.columns.empty_table()
    order = ", ".join(f"{name} DESC" for name in ("timestamp", *TIE_BREAK))
    sql = (
        f"SELECT {column_list(snapshot.columns.names)} FROM {scan} "  # noqa: S608
        f"QUALIFY row_number() OVER (PARTITION BY exchange, symbol ORDER BY {order}) = 1"
    )
    return cursor.execute(sql).to_arrow_table().cast(snapshot.columns)
