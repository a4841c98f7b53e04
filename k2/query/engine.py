"""The query engine: pins lake and tail, runs records and SQL queries in the pool."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

import duckdb
import pyarrow as pa
import structlog

from k2.errors import LakeError
from k2.lake.reader import LakeFile
from k2.lake.vector import Vector
from k2.query import seam
from k2.query.cold import Bounds, ColdSnapshot, column_list
from k2.query.execute import FileGoneError, run_checked, translated
from k2.query.measured import measured
from k2.query.pool import PoolStats, QueryPool
from k2.query.prune import bounds_by_view, evaluator
from k2.query.records import RecordsQuery, newest
from k2.query.seam import Pin
from k2.query.sql import check_sql
from k2.query.tail import TailView

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: More hot rows than this are slower to scan than the small files they stand for.
_MAX_HOT_ROWS: Final = 2_000_000

_MARKET_DATA: Final = (
    "SELECT symbol, exchange, epoch_ms(timestamp) AS exchange_timestamp_ms, price, quantity, side, "
    "CAST(timestamp AS DATE) AS exchange_date FROM {rows}"
)


class LakeTable(Protocol):
    """One table of the lake, as the engine sees it."""

    def snapshots(self) -> Sequence[ColdSnapshot]:
        """Snapshots that may be pinned, the newest first; planned already, no I/O."""

    def vector(self) -> Vector:
        """The vector of the newest snapshot known."""

    def refresh(self) -> None:
        """Look for newer snapshots now (blocking)."""


@dataclass(frozen=True, slots=True)
class Source:
    """A table and, where it has one, the view of its tail."""

    lake: LakeTable
    time_column: str = "timestamp"
    tail: Callable[[], TailView] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows and what they are: `as_of` per table, `partial` when rows are missing for now."""

    rows: pa.Table
    as_of: Mapping[str, Any]
    partial: bool = False
    truncated: bool = False
    files_read: int | None = None


@dataclass(slots=True)
class _Symbols:
    """Distinct (exchange, symbol) of data files that never change."""

    by_file: dict[str, frozenset[tuple[str, str]]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class QueryEngine:
    """Queries over `sources` (trades, quotes, gaps). All methods are for the event loop."""

    def __init__(
        self,
        database: duckdb.DuckDBPyConnection,
        sources: Mapping[str, Source],
        *,
        pool_size: int,
        queue_size: int,
        timeout_s: float,
    ) -> None:
        self._sources = sources
        self._pool = QueryPool(database, size=pool_size, queue_size=queue_size, timeout_s=timeout_s)
        self._symbols: dict[str, _Symbols] = {name: _Symbols() for name in sources}
        self._names = itertools.count()

    def stats(self) -> PoolStats:
        return self._pool.stats()

    def close(self) -> None:
        self._pool.close()

    def pin(self, table: str) -> Pin[ColdSnapshot]:
        """What a query of `table` would read if it began now."""
        source = self._sources[table]
        # The tail's picture comes first: rows leave the tail when a snapshot has them, so the
        # snapshots known a moment later reach at least as far.
        view = source.tail() if source.tail else None
        snapshots = source.lake.snapshots()
        return seam.pin(
            snapshots, view or TailView(snapshots[0].columns), max_hot_rows=_MAX_HOT_ROWS
        )

    def committed(self, table: str) -> Vector:
        """The vector up to which the tail may let go."""
        return self._sources[table].lake.vector()

    def status(self) -> dict[str, Any]:
        """Pool, and per table what a query would read now."""
        stats = self._pool.stats()
        return {
            "pool": dataclasses.asdict(stats),
            "tables": {name: self._table_status(name) for name in self._sources},
        }

    def _table_status(self, name: str) -> dict[str, Any]:
        try:
            pinned = self.pin(name)
        except LakeError as exc:
            # Status has to tell of a lake that is down, not to fail with it.
            return {"error": exc.message}
        return {
            **pinned.as_of(),
            "partial": pinned.partial,
            **_size(pinned.snapshot),
            # The pinned one may be older: what came since is hot.
            "newest": _size(self._sources[name].lake.snapshots()[0]),
        }

    async def records(self, table: str, query: RecordsQuery) -> Answer:
        """The newest records of `table`, `query.limit` at most."""

        def work(cursor: duckdb.DuckDBPyConnection) -> Answer:
            pinned = self.pin(table)
            found = newest(cursor, pinned, query)
            return Answer(
                found.rows,
                {table: pinned.as_of()},
                partial=pinned.partial,
                files_read=found.files_read,
            )

        return await self._run(work, (table,))

    async def sql(self, text: str, *, limit: int) -> Answer:
        """Run one SELECT of a user. Raises `InvalidParameter` when it is refused."""
        work = functools.partial(self._sql, text, limit)
        return await self._run(work, tuple(self._sources), "sql")

    async def symbols(self, table: str, exchange: str | None) -> Answer:
        """Distinct symbols (and their exchanges) of hot and cold rows, sorted."""
        work = functools.partial(self._distinct, table, exchange)
        return await self._run(work, (table,), "symbols")

    async def _run(
        self,
        work: Callable[[duckdb.DuckDBPyConnection], T],
        tables: Sequence[str],
        query_type: str = "records",
    ) -> T:
        def attempt(cursor: duckdb.DuckDBPyConnection) -> T:
            try:
                return work(cursor)
            except duckdb.Error as exc:
                raise translated(exc) from exc

        def work_on(cursor: duckdb.DuckDBPyConnection) -> T:
            try:
                return attempt(cursor)
            except FileGoneError as exc:
                # Maintenance may have removed a file since it was planned: once more, newer.
                log.warning("query_file_gone", tables=tables, error=str(exc.__cause__))
            for table in tables:
                self._sources[table].lake.refresh()
            return attempt(cursor)

        with measured(query_type):
            return await self._pool.run(work_on)

    def _sql(self, text: str, limit: int, cursor: duckdb.DuckDBPyConnection) -> Answer:
        checked = check_sql(cursor, text)
        bounds = bounds_by_view(checked.tree, evaluator(cursor))
        pins = {_table_of(view): self.pin(_table_of(view)) for view in sorted(checked.views)}
        for view in sorted(checked.views):
            self._create_view(cursor, view, pins[_table_of(view)], bounds.get(view, Bounds()))
        rows, truncated = run_checked(cursor, checked, limit)
        return Answer(
            rows,
            {name: pinned.as_of() for name, pinned in pins.items()},
            partial=any(pinned.partial for pinned in pins.values()),
            truncated=truncated,
        )

    def _create_view(
        self,
        cursor: duckdb.DuckDBPyConnection,
        view: str,
        pinned: Pin[ColdSnapshot],
        bounds: Bounds,
    ) -> None:
        """A temporary view of the union, on this cursor only."""
        columns = pinned.snapshot.columns
        hot = f"hot_{next(self._names)}"
        cursor.register(hot, pinned.hot())
        names = column_list(columns.names)
        parts = [f"SELECT {names} FROM {hot}"]  # noqa: S608
        scan = pinned.snapshot.scan(pinned.snapshot.select(bounds))
        if scan is not None:
            parts.append(f"SELECT {names} FROM {scan}")  # noqa: S608
        rows = " UNION ALL ".join(parts)
        if view == "market_data":
            rows = _MARKET_DATA.format(rows=f"({rows})")
        cursor.execute(f"CREATE OR REPLACE TEMP VIEW {view} AS {rows}")

    def _distinct(
        self, table: str, exchange: str | None, cursor: duckdb.DuckDBPyConnection
    ) -> Answer:
        pinned = self.pin(table)
        found = self._cold_symbols(table, pinned.snapshot, cursor)
        hot = pinned.hot().select(["exchange", "symbol"]).group_by(["exchange", "symbol"])
        found |= {(row["exchange"], row["symbol"]) for row in hot.aggregate([]).to_pylist()}
        chosen = sorted(pair for pair in found if exchange is None or pair[0] == exchange)
        rows = pa.table(
            {
                "symbol": pa.array([symbol for _, symbol in chosen], pa.string()),
                "exchange": pa.array([name for name, _ in chosen], pa.string()),
            }
        )
        return Answer(rows, {table: pinned.as_of()}, partial=pinned.partial)

    def _cold_symbols(
        self, table: str, snapshot: ColdSnapshot, cursor: duckdb.DuckDBPyConnection
    ) -> set[tuple[str, str]]:
        """Data files never change, so each is asked once."""
        cache = self._symbols[table]
        with cache.lock:
            known = cache.by_file
            missing = [file for file in snapshot.files if file.path not in known]
            if snapshot.metadata_location is not None:
                rows = _exchange_symbols(cursor, snapshot.scan(snapshot.files))
                return set(rows)
            fresh = {file.path: _file_symbols(cursor, snapshot, file) for file in missing}
            cache.by_file = {
                file.path: known.get(file.path) or fresh[file.path] for file in snapshot.files
            }
            return set().union(*cache.by_file.values())


def _size(snapshot: ColdSnapshot) -> dict[str, Any]:
    return {
        "snapshot_id": None if snapshot.snapshot_id is None else str(snapshot.snapshot_id),
        "files": len(snapshot.files),
        "cold_rows": sum(file.rows for file in snapshot.files),
    }


def _table_of(view: str) -> str:
    return "trades" if view == "market_data" else view


def _file_symbols(
    cursor: duckdb.DuckDBPyConnection, snapshot: ColdSnapshot, file: LakeFile
) -> frozenset[tuple[str, str]]:
    if file.symbols and file.exchanges and len({*file.symbols}) == len({*file.exchanges}) == 1:
        # Bounds of a single value say it all.
        return frozenset(((file.exchanges[0], file.symbols[0]),))
    return frozenset(_exchange_symbols(cursor, snapshot.scan([file])))


def _exchange_symbols(cursor: duckdb.DuckDBPyConnection, scan: str | None) -> list[tuple[str, str]]:
    if scan is None:
        return []
    return cursor.execute(f"SELECT DISTINCT exchange, symbol FROM {scan}").fetchall()  # noqa: S608
