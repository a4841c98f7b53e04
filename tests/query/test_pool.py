from __future__ import annotations

import asyncio
import contextlib
import threading

import duckdb
import pytest

from k2.errors import Overloaded, QueryTimeout
from k2.query.pool import PoolStats, QueryPool


@pytest.fixture
def database():
    made = duckdb.connect(":memory:")
    yield made
    made.close()


async def test_a_full_queue_refuses_and_says_when_to_come_back(database) -> None:
    pool = QueryPool(database, size=1, queue_size=1, timeout_s=30)
    go, begun = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def hold(cursor: duckdb.DuckDBPyConnection) -> int:
        loop.call_soon_threadsafe(begun.set)
        go.wait()
        return 1

    first = asyncio.create_task(pool.run(hold))
    await begun.wait()
    second = asyncio.create_task(pool.run(hold))
    await asyncio.sleep(0)
    assert pool.stats() == PoolStats(1, 1, running=1, waiting=1)
    with pytest.raises(Overloaded) as caught:
        await pool.run(hold)
    assert caught.value.details["retry_after_s"] == 1
    go.set()
    assert await asyncio.gather(first, second) == [1, 1]
    assert pool.stats().running == 0
    pool.close()


async def test_waiting_counts_towards_the_deadline(database) -> None:
    pool = QueryPool(database, size=1, queue_size=5, timeout_s=30)
    go = threading.Event()
    first = asyncio.create_task(pool.run(lambda cursor: go.wait()))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await pool.run(lambda cursor: 1, timeout_s=0.01)
    go.set()
    assert await first
    pool.close()


ENDLESS = "SELECT count(*) FROM range(100000000) a, range(1000000) b WHERE a.range < b.range"


async def test_a_cancelled_caller_stops_its_query(database) -> None:
    pool = QueryPool(database, size=1, queue_size=5, timeout_s=60)
    task = asyncio.create_task(pool.run(lambda cursor: cursor.execute(ENDLESS).fetchall()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # The only slot becomes free, so the query has ended.
    assert await pool.run(lambda cursor: cursor.execute("SELECT 1").fetchone()) == (1,)
    pool.close()


async def test_an_interrupt_reaches_the_statement_after_next(database) -> None:
    pool = QueryPool(database, size=1, queue_size=5, timeout_s=60)

    def work(cursor: duckdb.DuckDBPyConnection) -> None:
        # Python between statements swallows an interrupt; the repeated one must not be.
        for _ in range(3):
            try:
                cursor.execute(ENDLESS).fetchall()
            except duckdb.InterruptException:
                continue

    with contextlib.suppress(QueryTimeout):
        # What ends soon after the deadline is an answer still.
        assert await pool.run(work, timeout_s=0.1) is None
    assert await pool.run(lambda cursor: 7) == 7
    pool.close()


async def test_at_the_deadline_what_is_known_is_the_answer(database) -> None:
    pool = QueryPool(database, size=1, queue_size=5, timeout_s=60)

    def work(cursor: duckdb.DuckDBPyConnection) -> str:
        with contextlib.suppress(duckdb.InterruptException):
            cursor.execute(ENDLESS).fetchall()
        return "the first half"

    assert await pool.run(work, timeout_s=0.1) == "the first half"
    pool.close()


async def test_errors_of_the_work_reach_the_caller(database) -> None:
    pool = QueryPool(database, size=1, queue_size=5, timeout_s=60)
    with pytest.raises(duckdb.BinderException):
        await pool.run(lambda cursor: cursor.execute("SELECT nope").fetchall())
    assert pool.stats().running == 0
    pool.close()
