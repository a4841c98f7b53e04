"""Newest records: exact against a plain sort, with late rows, ties and pruned files."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest

from k2.lake.vector import Vector
from k2.query.records import RecordsQuery
from tests.query.conftest import Platform
from tests.query.rows import T0_US, place, rows

_ORDER = ("timestamp", "platform_sequence", "log_partition", "log_topic", "log_epoch")


def expected(tables: list[pa.Table], query: RecordsQuery) -> list[dict]:
    found = [
        row
        for row in pa.concat_tables(tables).to_pylist()
        if query.symbol in (None, row["symbol"])
        and query.exchange in (None, row["exchange"])
        and (query.start_us is None or row["timestamp"].timestamp() * 1e6 >= query.start_us)
        and (query.end_us is None or row["timestamp"].timestamp() * 1e6 < query.end_us)
    ]
    found.sort(key=lambda row: tuple(row[name] for name in _ORDER), reverse=True)
    return found[: query.limit]


async def test_hot_and_cold_are_one_table(platform: Platform) -> None:
    chance = random.Random(7)
    everything: list[pa.Table] = []
    for step in range(6):
        for partition in (0, 1):
            ids = range(step * 50, step * 50 + 50)
            # Coarse times tie often; a step in three is late by hours.
            late = chance.choice((0, 0, 7_200_000_000))
            times = [T0_US + step * 60_000_000 - late + chance.randrange(40) * 1_000 for _ in ids]
            names = [chance.choice(("BTCUSDT", "ETHUSDT", "PEPEUSDT")) for _ in ids]
            table = rows(ids, times, symbols=names, partition=partition)
            everything.append(table)
            platform.produce(table, place(partition))
            if step < 4:
                platform.commit(table, place(partition))
        if step in (1, 3):
            platform.refresh()
    for symbol in (None, "BTCUSDT", "NOPE"):
        for limit in (1, 7, 100, 1_000):
            for start, end in ((None, None), (T0_US + 60_000_000, T0_US + 181_000_000)):
                query = RecordsQuery(symbol=symbol, start_us=start, end_us=end, limit=limit)
                answer = await platform.engine.records("trades", query)
                assert answer.rows.to_pylist() == expected(everything, query), query
                assert not answer.partial


async def test_recent_rows_come_from_memory_alone(platform: Platform) -> None:
    old = rows(range(100), [T0_US + i for i in range(100)])
    new = rows(range(100, 200), [T0_US + 1_000_000 + i for i in range(100)])
    platform.commit(old, place())
    platform.refresh()
    platform.produce(old, place())
    platform.produce(new, place())
    answer = await platform.engine.records("trades", RecordsQuery(symbol="BTCUSDT", limit=50))
    assert answer.files_read == 0
    assert answer.rows.num_rows == 50


async def test_a_cold_row_newer_than_the_hot_ones_is_found(platform: Platform) -> None:
    future = rows([0], [T0_US + 10_000_000])
    platform.commit(future, place())
    platform.refresh()
    platform.tails["trades"].start(place(), 0)
    platform.produce(rows(range(1, 101), [T0_US + i for i in range(100)]), place())
    answer = await platform.engine.records("trades", RecordsQuery(limit=10))
    assert answer.rows["platform_sequence"][0].as_py() == 0


async def test_only_the_bucket_of_the_symbol_is_read(platform: Platform) -> None:
    names = [f"S{i}USDT" for i in range(64)]
    platform.commit(rows(range(64), [T0_US + i for i in range(64)], symbols=names), place())
    platform.refresh()
    files = platform.engine.pin("trades").snapshot.files
    assert len(files) == 16
    answer = await platform.engine.records("trades", RecordsQuery(symbol="S5USDT"))
    assert (answer.files_read, answer.rows.num_rows) == (1, 1)


async def test_an_old_snapshot_is_pinned_while_the_tail_reaches_it(platform: Platform) -> None:
    platform.tails["trades"].start(place(), -1)
    for step in range(5):
        table = rows(range(step * 10, step * 10 + 10), [T0_US + step * 100 + i for i in range(10)])
        platform.produce(table, place())
        platform.commit(table, place())
        platform.refresh()
    # The first one that is not empty.
    assert len(platform.engine.pin("trades").snapshot.files) == 1
    answer = await platform.engine.records("trades", RecordsQuery())
    assert (answer.files_read, answer.rows.num_rows) == (1, 50)
    # Once the tail has let go, a newer snapshot takes over and the answer stays the same.
    newest = platform.tables["trades"].vector()
    platform.tails["trades"].trim(1e6, newest, max_minutes=0, max_bytes=10**9)
    later = await platform.engine.records("trades", RecordsQuery())
    assert later.rows.equals(answer.rows)
    assert later.files_read == 5
    assert later.as_of["trades"]["vector"] == answer.as_of["trades"]["vector"]


async def test_rows_lost_between_lake_and_tail_make_the_answer_partial(platform: Platform) -> None:
    platform.commit(rows(range(10), [T0_US] * 10), place())
    platform.refresh()
    platform.tails["trades"].start(place(), 9)
    platform.produce(rows(range(10, 20), [T0_US] * 10), place())
    platform.tails["trades"].trim(0, Vector.empty(), max_minutes=15, max_bytes=1)
    platform.produce(rows(range(20, 30), [T0_US] * 10), place())
    answer = await platform.engine.records("trades", RecordsQuery())
    assert answer.partial
    assert answer.rows.num_rows == 20
    platform.commit(rows(range(10, 20), [T0_US] * 10), place())
    platform.refresh()
    answer = await platform.engine.records("trades", RecordsQuery())
    assert (answer.partial, answer.rows.num_rows) == (False, 30)


async def test_rows_another_engine_deletes_do_not_come_back(platform: Platform) -> None:
    platform.tails["trades"].start(place(), -1)
    for first in (0, 10):
        table = rows(range(first, first + 10), [T0_US + first + i for i in range(10)])
        platform.produce(table, place())
        platform.commit(table, place())
        platform.refresh()
    platform.catalog.load_table("market_data.trades").delete("platform_sequence >= 10")
    platform.refresh()
    answer = await platform.engine.records("trades", RecordsQuery())
    assert sorted(answer.rows["platform_sequence"].to_pylist()) == list(range(10))


async def test_symbols_of_hot_and_cold(platform: Platform) -> None:
    platform.commit(rows([0, 1], [T0_US] * 2, symbols=["ETHUSDT", "BTCUSDT"]), place())
    platform.refresh()
    platform.tails["trades"].start(place(), 1)
    platform.produce(rows([2], [T0_US], symbols="SOLUSDT", exchange="KRAKEN"), place())
    for _ in range(2):
        answer = await platform.engine.symbols("trades", None)
        assert answer.rows["symbol"].to_pylist() == ["BTCUSDT", "ETHUSDT", "SOLUSDT"]
    answer = await platform.engine.symbols("trades", "KRAKEN")
    assert answer.rows["symbol"].to_pylist() == ["SOLUSDT"]


@pytest.mark.parametrize("kind", ["trades", "quotes"])
async def test_an_empty_platform_answers_with_nothing(platform: Platform, kind: str) -> None:
    answer = await platform.engine.records(kind, RecordsQuery())
    assert answer.rows.num_rows == 0
    assert answer.as_of[kind]["snapshot_id"] is None
