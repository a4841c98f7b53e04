"""Queries run in threads, a bounded number at once, each with a deadline that interrupts it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import duckdb

from k2 import metrics
from k2.errors import Overloaded, QueryTimeout

T = TypeVar("T")

#: Between two interrupts of a query that is overdue: one that comes before the query's next
#: statement begins is forgotten by DuckDB.
_INTERRUPT_EVERY_S = 0.05
#: How long an interrupted query may take to hand over what it has.
_GRACE_S = 0.5


@dataclass(frozen=True, slots=True)
class PoolStats:
    """`running` of `size` slots are busy, `waiting` of `queue_size` places are taken."""

    size: int
    queue_size: int
    running: int
    waiting: int


class _Job:
    """One query: its own cursor, and a switch to stop it from another thread."""

    def __init__(self, database: duckdb.DuckDBPyConnection) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._cursor: duckdb.DuckDBPyConnection | None = None
        self._stopped = False

    def run(self, work: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        with self._lock:
            if self._stopped:
                raise QueryTimeout("the query was stopped before it began")
            self._cursor = self._database.cursor()
        try:
            return work(self._cursor)
        finally:
            with self._lock:
                self._cursor.close()
                self._cursor = None

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._cursor is not None:
                self._cursor.interrupt()


def _interrupted(future: asyncio.Future[T]) -> bool:
    return isinstance(future.exception(), QueryTimeout)


class QueryPool:
    """`size` queries at once, `queue_size` waiting; `timeout_s` covers waiting and running."""

    def __init__(
        self,
        database: duckdb.DuckDBPyConnection,
        *,
        size: int,
        queue_size: int,
        timeout_s: float,
    ) -> None:
        self._database = database
        self._slots = asyncio.Semaphore(size)
        self._executor = ThreadPoolExecutor(size, thread_name_prefix="k2-query")
        self._size, self._queue_size, self._timeout_s = size, queue_size, timeout_s
        self._running = self._waiting = 0
        metrics.POOL_SIZE.set(size)
        self._show()

    def stats(self) -> PoolStats:
        return PoolStats(self._size, self._queue_size, self._running, self._waiting)

    async def run(
        self, work: Callable[[duckdb.DuckDBPyConnection], T], *, timeout_s: float | None = None
    ) -> T:
        """Call `work` with a cursor of its own in a thread.

        Raises `Overloaded` when the queue is full and `QueryTimeout` at the deadline; the query is
        then interrupted, as it is when the caller is cancelled.
        """
        limit_s = self._timeout_s if timeout_s is None else min(timeout_s, self._timeout_s)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limit_s
        await self._enter(deadline, limit_s)
        job = _Job(self._database)
        future = loop.run_in_executor(self._executor, job.run, work)
        future.add_done_callback(self._leave)
        try:
            done, _ = await asyncio.wait({future}, timeout=max(0.0, deadline - loop.time()))
        except asyncio.CancelledError:
            self._stop(job, future)
            raise
        if not done:
            self._stop(job, future)
            # A query that has rows already answers with them, marked as partial.
            done, _ = await asyncio.wait({future}, timeout=_GRACE_S)
        if done and not _interrupted(future):
            return future.result()
        raise QueryTimeout(
            f"the query ran longer than {limit_s:g} s and was stopped; ask for less time, fewer "
            "symbols or fewer rows",
            timeout_s=limit_s,
        )

    def close(self) -> None:
        """Stop taking queries; those that run end by their own deadline."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    async def _enter(self, deadline: float, limit_s: float) -> None:
        if self._slots.locked() and self._waiting >= self._queue_size:
            metrics.POOL_TIMEOUTS.inc()
            raise Overloaded(
                f"{self._size} queries run and {self._waiting} wait; try again in a second",
                retry_after_s=1,
            )
        self._waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                with metrics.POOL_WAIT_SECONDS.time():
                    await self._slots.acquire()
        except TimeoutError as exc:
            metrics.POOL_TIMEOUTS.inc()
            raise Overloaded(
                f"no query slot became free within {limit_s:g} s; try again later",
                retry_after_s=5,
            ) from exc
        finally:
            self._waiting -= 1
        self._running += 1
        self._show()

    def _leave(self, future: asyncio.Future[T]) -> None:
        self._running -= 1
        self._slots.release()
        self._show()
        if not future.cancelled():
            # Whoever waited has raised already; asking marks the exception as seen.
            future.exception()

    def _show(self) -> None:
        metrics.POOL_ACTIVE.set(self._running)
        metrics.POOL_AVAILABLE.set(self._size - self._running)

    def _stop(self, job: _Job, future: asyncio.Future[T]) -> None:
        job.stop()
        if not future.done():
            asyncio.get_running_loop().call_later(_INTERRUPT_EVERY_S, self._stop, job, future)
