"""The query engine: pins lake and tail, runs records and SQL queries in the pool."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import duckdb
import pyarrow as pa
import structlog
from pyiceberg.table.snapshots import Snapshot

from k2 import metrics
from k2.breakers import Breaker
from k2.errors import LakeError
from k2.lake.vector import Vector
from k2.query import seam
from k2.query.answers import Answer, HotAnswer, Seen, Show, answer_of, hot_answer_of, newest_us
from k2.query.asked import QUICK_ROWS, RecordsQuery
from k2.query.bounds import Bounds
from k2.query.cold import ColdSnapshot
from k2.query.execute import FileGoneError, Result, blames, run_checked, translated
from k2.query.hot_rows import HotRows
from k2.query.kept import footprint
from k2.query.lake_table import AsOf
from k2.query.last_row import LastRow
from k2.query.latest import last_rows_of, latest, latest_hot, table_of_rows
from k2.query.measured import measured
from k2.query.near_rows import NearRows, texts_of
from k2.query.per_file import PerFile, exchange_symbols, symbols_of
from k2.query.pool import PoolStats, QueryPool
from k2.query.prune import bounds_by_view, evaluator
from k2.query.records import find, find_hot
from k2.query.row_texts import RowTexts
from k2.query.seam import Pin
from k2.query.sql import check_sql
from k2.query.tail import TailView
from k2.query.turns import Turns
from k2.query.views import create_view, table_of
from k2.tracing import TRACING

log = structlog.get_logger(__name__)

T = TypeVar("T")
Cursor = duckdb.DuckDBPyConnection
LatestHot = HotAnswer[tuple[LastRow, ...]]

#: Of hot rows made JSON, per table.
_TEXT_BYTES: Final = 32 * 1024 * 1024
#: Of rows of files that are asked for again, per table.
_NEAR_BYTES: Final = 32 * 1024 * 1024
#: What is answered on the event loop itself takes it a millisecond or two at most: the newest rows
#: of a few symbols.
_INLINE_SYMBOLS: Final = 100
#: More hot rows than this are slower to scan than the small files they stand for.
_MAX_HOT_ROWS: Final = 2_000_000


class LakeTable(Protocol):
    """One table of the lake, as the engine sees it."""

    def snapshots(self) -> Sequence[ColdSnapshot]:
        """Snapshots that may be pinned, the newest first; planned already, no I/O."""

    def at(self, when: AsOf) -> ColdSnapshot:
        """An older snapshot (blocking). Raises `SnapshotNotFoundError`."""

    def history(self, limit: int) -> list[Snapshot]:
        """The table's snapshots, newest first (blocking)."""

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


class QueryEngine:
    """Queries over `sources` (trades, quotes, gaps). All methods are for the event loop.

    `at`: read one older state of the lake instead of the newest rows, hot ones included.
    """

    def __init__(
        self,
        database: Cursor,
        sources: Mapping[str, Source],
        *,
        pool_size: int,
        queue_size: int,
        timeout_s: float,
        breaker: Breaker | None = None,
    ) -> None:
        self._sources = sources
        self._breaker = breaker
        self._pool = QueryPool(database, size=pool_size, queue_size=queue_size, timeout_s=timeout_s)
        self._symbols = {name: PerFile(symbols_of) for name in sources}
        self._last_rows = {name: PerFile(last_rows_of) for name in sources}
        self._texts = {name: RowTexts(_TEXT_BYTES) for name in sources}
        self._near = {name: NearRows(_NEAR_BYTES) for name in sources}
        #: For whoever answers on the event loop.
        self.turns = Turns()

    def stats(self) -> PoolStats:
        return self._pool.stats()

    def ease(self) -> None:
        """Let go of what was made for answers and can be made again."""
        for texts in self._texts.values():
            texts.clear()
        for near in self._near.values():
            near.clear()

    def close(self) -> None:
        self._pool.close()

    def pin(self, table: str, at: AsOf | None = None) -> Pin[ColdSnapshot]:
        """What a query of `table` would read if it began now; blocks only with `at`."""
        source = self._sources[table]
        if at is not None:
            snapshot = source.lake.at(at)
            return Pin(snapshot, TailView(snapshot.columns), partial=False)
        # The tail's picture comes first: rows leave the tail when a snapshot has them, so the
        # snapshots known a moment later reach at least as far.
        view = source.tail() if source.tail else None
        snapshots = source.lake.snapshots()
        return seam.pin(
            snapshots, view or TailView(snapshots[0].columns), max_hot_rows=_MAX_HOT_ROWS
        )

    def tail(self, table: str) -> TailView:
        """The hot rows as they are now; empty where this worker holds none."""
        source = self._sources[table]
        return source.tail() if source.tail else TailView(source.lake.snapshots()[0].columns)

    def committed(self, table: str) -> Vector:
        """The vector up to which the tail may let go."""
        return self._sources[table].lake.vector()

    def slots(self) -> dict[str, int]:
        """Query slots, and who waits for one."""
        return dataclasses.asdict(self._pool.stats())

    def status(self) -> dict[str, Any]:
        """Pool, and per table what a query would read now."""
        return {
            "pool": self.slots(),
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

    async def records(
        self,
        table: str,
        query: RecordsQuery,
        at: AsOf | None = None,
        show: Show | None = None,
    ) -> Answer:
        """The first records of `table` in time order, `query.limit` at most.

        `show`: what of them the answer also has as JSON.
        """

        def work(cursor: Cursor) -> Answer:
            pinned = self.pin(table, at)
            found = find(cursor, pinned, query, self._near[table] if at is None else None)
            return answer_of(
                {table: pinned},
                found.rows,
                at,
                show,
                files_read=found.files_read,
                cut_short=found.cut_short,
                read=footprint(pinned, query.bounds),
            )

        return await self._run("records", work, (table,))

    def glance(self, table: str, bounds: Bounds) -> Seen | None:
        """What an answer within `bounds` would come from; None: not from files alone."""
        pinned = self.pin(table)
        read = footprint(pinned, bounds)
        if read is None:
            return None
        return Seen(as_of={table: pinned.as_of()}, newest_us={table: newest_us(pinned)}, read=read)

    def hot_records(self, table: str, query: RecordsQuery) -> HotAnswer[HotRows] | None:
        """The answer of `records` where memory alone has it, at once; None: ask `records`.

        A thread of its own would cost such an answer more than finding it.
        """
        if not _is_quick(query):
            return None

        def attempt() -> HotAnswer[HotRows] | None:
            pinned = self.pin(table)
            found = find_hot(pinned, query, self._near[table])
            if found is None:
                return None
            texts = functools.partial(texts_of, hot=self._texts[table])
            return hot_answer_of(table, pinned, found, texts, files_read=0)

        return _at_once("records", attempt)

    def hot_latest(self, table: str, symbols: frozenset[str]) -> LatestHot | None:
        """The answer of `latest` where memory alone has it, at once; None: ask `latest`."""
        if len(symbols) > _INLINE_SYMBOLS:
            return None

        def attempt() -> LatestHot | None:
            pinned = self.pin(table)
            rows = latest_hot(pinned, symbols)
            if rows is None:
                return None
            return hot_answer_of(table, pinned, rows, self._texts[table].of_last)

        return _at_once("latest", attempt)

    async def sql(self, text: str, *, limit: int, at: AsOf | None = None) -> Answer:
        """Run one SELECT of a user. Raises `InvalidParameter` when it is refused."""

        def work(cursor: Cursor) -> Answer:
            checked = check_sql(cursor, text)
            names = {name: checked.view_of(name) for name in sorted(checked.views)}
            bounds = bounds_by_view(checked.tree, evaluator(cursor), names)
            pins: dict[str, Pin[ColdSnapshot]] = {}
            for name, view in names.items():
                when = checked.travels[name].when if name in checked.travels else at
                shown = f"{table_of(view)} ({name})" if name in checked.travels else table_of(view)
                pinned = pins.get(shown) or self.pin(table_of(view), when)
                pins[shown] = pinned
                create_view(cursor, name, view, pinned, bounds.get(name, Bounds()))
            found = run_checked(cursor, checked.text, limit)
            return answer_of(
                pins,
                found.rows,
                at,
                truncated=found.truncated,
                cut_short=found.cut_short,
                clock=checked.tells_time,
            )

        return await self._run("sql", work, tuple(self._sources))

    async def fixed(
        self,
        kind: str,
        text: str,
        values: Sequence[Any],
        views: Mapping[str, Bounds],
        *,
        limit: int,
        at: AsOf | None = None,
    ) -> Answer:
        """Run one of K2's own queries, with `values` bound; `views`: what it reads of which."""

        def work(cursor: Cursor) -> Answer:
            pins = {view: self.pin(view, at) for view in views}
            for view, pinned in pins.items():
                create_view(cursor, view, view, pinned, views[view])
            found = run_checked(cursor, text, limit, values)
            return answer_of(
                pins, found.rows, at, truncated=found.truncated, cut_short=found.cut_short
            )

        return await self._run(kind, work, tuple(views))

    async def call(
        self,
        kind: str,
        tables: Sequence[str],
        work: Callable[[Cursor, Mapping[str, Pin[ColdSnapshot]]], pa.Table | Result],
        at: AsOf | None = None,
        bounds: Bounds | None = None,
        show: Show | None = None,
    ) -> Answer:
        """Run `work` over one picture of several tables; a `Result` also says what it lacks.

        `bounds`: of what it reads of the first, where its answer may be kept. `show`: as for
        `records`.
        """

        def pinned_work(cursor: Cursor) -> Answer:
            pins = {table: self.pin(table, at) for table in tables}
            read = None if bounds is None else footprint(pins[tables[0]], bounds)
            made = work(cursor, pins)
            found = made if isinstance(made, Result) else Result(made)
            return answer_of(
                pins,
                found.rows,
                at,
                show,
                truncated=found.truncated,
                cut_short=found.cut_short,
                read=read,
            )

        return await self._run(kind, pinned_work, tables)

    async def symbols(self, table: str, exchange: str | None, at: AsOf | None = None) -> Answer:
        """Distinct symbols (and their exchanges) of hot and cold rows, sorted."""

        def work(cursor: Cursor, pins: Mapping[str, Pin[ColdSnapshot]]) -> pa.Table:
            pinned = pins[table]
            found = self._cold_symbols(table, pinned.snapshot, cursor)
            hot = pinned.hot().select(["exchange", "symbol"]).group_by(["exchange", "symbol"])
            found |= {(row["exchange"], row["symbol"]) for row in hot.aggregate([]).to_pylist()}
            chosen = sorted(pair for pair in found if exchange is None or pair[0] == exchange)
            return pa.table(
                {
                    "symbol": pa.array([symbol for _, symbol in chosen], pa.string()),
                    "exchange": pa.array([name for name, _ in chosen], pa.string()),
                }
            )

        return await self.call("symbols", (table,), work, at)

    async def latest(
        self, table: str, symbols: frozenset[str] | None, at: AsOf | None = None
    ) -> Answer:
        """The last row of each (exchange, symbol)."""
        found = await self.latest_at_hand(table, symbols, at)
        return self._shown(table, found) if isinstance(found, HotAnswer) else found

    async def latest_at_hand(
        self, table: str, symbols: frozenset[str] | None, at: AsOf | None = None
    ) -> LatestHot | Answer:
        """The same in the form it is found in: at once where memory alone has it."""
        if at is None and symbols is not None:
            async with self.turns:
                known = self.hot_latest(table, symbols)
            if known is not None:
                return known

        def work(cursor: Cursor, pins: Mapping[str, Pin[ColdSnapshot]]) -> pa.Table:
            return latest(cursor, pins[table], self._last_rows[table], symbols)

        return await self.call("latest", (table,), work, at)

    def _shown(self, table: str, hot: LatestHot) -> Answer:
        return Answer(
            rows=table_of_rows(self._sources[table].lake.snapshots()[0].columns, hot.rows),
            as_of=hot.as_of,
            newest_us=hot.newest_us,
            partial=hot.partial,
        )

    async def history(self, table: str, limit: int) -> list[Snapshot]:
        """The table's snapshots, newest first."""
        return await self._run(
            "snapshots", lambda _: self._sources[table].lake.history(limit), (table,)
        )

    async def _run(self, kind: str, work: Callable[[Cursor], T], tables: Sequence[str]) -> T:
        guard = self._breaker.guarding(blames) if self._breaker else nullcontext()
        with measured(kind), guard:
            return await self._pool.run(functools.partial(self._attempts, work, tables))

    def _attempts(self, work: Callable[[Cursor], T], tables: Sequence[str], cursor: Cursor) -> T:
        def attempt() -> T:
            try:
                return work(cursor)
            except duckdb.Error as exc:
                raise translated(exc) from exc

        try:
            return attempt()
        except FileGoneError as exc:
            # Maintenance may have removed a file since it was planned: once more, newer.
            log.warning("query_file_gone", tables=tables, error=str(exc.__cause__))
        for table in tables:
            self._sources[table].lake.refresh()
        return attempt()

    def _cold_symbols(
        self, table: str, snapshot: ColdSnapshot, cursor: Cursor
    ) -> set[tuple[str, str]]:
        if snapshot.metadata_location is not None:
            return set(exchange_symbols(cursor, snapshot.scan(snapshot.files)))
        cache = self._symbols[table]
        found = [cache.get(cursor, snapshot, file) for file in snapshot.files]
        cache.keep(snapshot.files)
        return set().union(*found)


def _at_once(kind: str, attempt: Callable[[], T | None]) -> T | None:
    """`attempt` on the event loop; None is no query yet, for the same is then asked in the pool."""
    began_s = time.perf_counter()
    try:
        with TRACING.span("k2.query", query_type=kind):
            found = attempt()
    except Exception:
        with measured(kind):
            raise
    if found is not None:
        metrics.QUERIES.labels(kind, "ok").inc()
        metrics.QUERY_SECONDS.labels(kind).observe(time.perf_counter() - began_s)
    return found


def _is_quick(query: RecordsQuery) -> bool:
    few = query.symbols is not None and len(query.symbols) <= _INLINE_SYMBOLS
    return few and query.limit <= QUICK_ROWS and not query.filters and query.after is None


def _size(snapshot: ColdSnapshot) -> dict[str, Any]:
    return {
        "snapshot_id": None if snapshot.snapshot_id is None else str(snapshot.snapshot_id),
        "files": len(snapshot.files),
        "cold_rows": sum(file.rows for file in snapshot.files),
    }
