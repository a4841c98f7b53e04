"""Latency of queries over a lake of 1M rows and a tail, as percentiles.

    python -m tests.query.bench_query [commits] [requests]

Rows: 100 symbols, skewed as 1/rank, spread over `commits` commits of equal size (each about 16
files), the last rows also hot. Warm: the first 20 requests of each kind are not counted.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer

from k2.query.asked import RecordsQuery
from k2.web.api import build_api
from k2.web.context import ApiContext
from k2.web.keys import KeyRing
from tests.query.conftest import Platform
from tests.query.rows import T0_US, place, rows

ROWS = 1_000_000
HOT = 20_000
SYMBOLS = [f"SYM{i:03}USDT" for i in range(100)]


def _table(first: int, count: int, step_us: int) -> pa.Table:
    weights = 1 / np.arange(1, len(SYMBOLS) + 1)
    chance = np.random.default_rng(first)
    names = chance.choice(SYMBOLS, count, p=weights / weights.sum())
    few = [Decimal(60_000 + i) / 100 for i in range(1_000)]
    prices = [few[i] for i in chance.integers(0, 1_000, count)]
    times = [T0_US + (first + i) * step_us for i in range(count)]
    ids = range(first, first + count)
    return rows(ids, times, symbols=list(names), prices=prices)


async def _measure(name: str, count: int, call: Callable[[], Awaitable[object]]) -> None:
    spent = []
    for i in range(count + 20):
        began = time.perf_counter()
        await call()
        if i >= 20:
            spent.append((time.perf_counter() - began) * 1_000)
    p50, p99 = np.percentile(spent, [50, 99])
    click.echo(
        f"{name:58} n={count:5}  p50 {p50:7.2f} ms  p99 {p99:7.2f} ms  max {max(spent):7.2f} ms"
    )


async def _run(commits: int, count: int) -> None:
    with tempfile.TemporaryDirectory() as path, pytest.MonkeyPatch.context() as monkeypatch:
        platform = Platform(Path(path), monkeypatch)
        size = ROWS // commits
        for index in range(commits):
            platform.commit(_table(index * size, size, 5_000), place())
        platform.refresh()
        files = len(platform.engine.pin("trades").snapshot.files)
        click.echo(f"{ROWS} rows in {files} files, {commits} commits")
        engine = platform.engine = platform.make_engine(pool_size=5, queue_size=100)
        chance = random.Random(1)

        async def one(limit: int = 100, **more) -> None:
            await engine.records("trades", RecordsQuery(limit=limit, **more))

        async def sql(text: str) -> None:
            await engine.sql(text, limit=10_000)

        middle = T0_US + ROWS // 2 * 5_000
        few = max(count // 10, 50)
        await _measure(
            "cold: newest 100 of the first symbol", count, lambda: one(symbols={SYMBOLS[0]})
        )
        await _measure(
            "cold: newest 100 of any symbol", count, lambda: one(symbols={chance.choice(SYMBOLS)})
        )
        await _measure(
            "cold: 100 of any symbol before the middle",
            count,
            lambda: one(symbols={chance.choice(SYMBOLS)}, end_us=middle),
        )
        await _measure(
            "cold: newest 10,000 of the first symbol",
            few,
            lambda: one(10_000, symbols={SYMBOLS[0]}),
        )
        platform.tails["trades"].start(place(), ROWS - 1)
        for first in range(ROWS, ROWS + HOT, 200):
            platform.produce(_table(first, 200, 5_000), place())
        click.echo(f"tail: {platform.tails['trades'].stats()}")
        await _measure(
            "hot+cold: newest 100 of the first symbol", count, lambda: one(symbols={SYMBOLS[0]})
        )
        await _measure(
            "hot+cold: newest 100 of any symbol",
            count,
            lambda: one(symbols={chance.choice(SYMBOLS)}),
        )
        await _measure("hot+cold: newest 100 of all", count, one)
        await _measure(
            "sql: minute candles of the first symbol",
            few,
            lambda: sql(
                "SELECT date_trunc('minute', timestamp) AS m, min(price), max(price), "
                "sum(quantity), vwap(price, quantity) FROM trades "
                f"WHERE symbol = '{SYMBOLS[0]}' GROUP BY m ORDER BY m"
            ),
        )
        await _measure(
            "sql: the same without vwap",
            few,
            lambda: sql(
                "SELECT date_trunc('minute', timestamp) AS m, min(price), max(price), "
                "sum(quantity) FROM trades "
                f"WHERE symbol = '{SYMBOLS[0]}' GROUP BY m ORDER BY m"
            ),
        )
        await _measure(
            "sql: count and volume per symbol, all rows",
            few,
            lambda: sql("SELECT symbol, count(*), sum(quantity) FROM trades GROUP BY symbol"),
        )
        await _http(platform, count)
        platform.close()


async def _http(platform: Platform, count: int) -> None:
    context = ApiContext(
        queries=platform.engine,
        keys=KeyRing.single("key"),
        version="bench",
        status=dict,
        checks=list,
        level=lambda: 0,
        max_rows=10_000,
        max_body_bytes=1_000_000,
    )
    server = TestServer(build_api(context))
    await server.start_server()
    url = server.make_url(f"/v1/trades?symbol={SYMBOLS[0]}&limit=100")
    async with ClientSession(headers={"X-API-Key": "key"}) as session:

        async def get() -> None:
            async with session.get(url) as response:
                assert response.status == 200
                await response.read()

        await _measure("http: /v1/trades newest 100, one client", count, get)
        began = time.perf_counter()
        await asyncio.gather(*(get() for _ in range(count)))
        click.echo(f"http: {count / (time.perf_counter() - began):.0f} requests/s, 100 connections")
    await server.close()


if __name__ == "__main__":
    import logging

    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    given = [int(text) for text in sys.argv[1:]] + [7, 1_000][len(sys.argv) - 1 :]
    asyncio.run(_run(*given))
