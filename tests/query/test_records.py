"""Newest records: exact against a plain sort, with late rows, ties and pruned files."""

from __future__ import annotations

import random
from dataclasses import replace
from decimal import Decimal

import pyarrow as pa
import pytest

from k2.errors import SnapshotNotFoundError
from k2.lake.vector import Vector
from k2.query.asked import RecordsQuery
from k2.query.filters import Between, OneOf, key_of
from k2.query.lake_table import AsOf
from tests.query.conftest import Platform
from tests.query.rows import T0_US, place, rows

_ORDER = ("timestamp", "platform_sequence", "log_partition", "log_topic", "log_epoch")


def expected(tables: list[pa.Table], query: RecordsQuery) -> list[dict]:
    """What a sort of one plain list gives; conditions written out anew."""

    def key(row: dict) -> tuple:
        return tuple(row[name] for name in _ORDER)

    found = [
        row
        for row in pa.concat_tables(tables).to_pylist()
        if (query.symbols is None or row["symbol"] in query.symbols)
        and (query.exchanges is None or row["exchange"] in query.exchanges)
        and (query.start_us is None or micros(row) >= query.start_us)
        and (query.end_us is None or micros(row) < query.end_us)
        and all(matches(row, test) for test in query.filters)
    ]
    found.sort(key=key, reverse=query.newest_first)
    if query.after is not None:
        place_of = [(micros(row), *key(row)[1:]) for row in found]
        found = found[place_of.index(tuple(query.after)) + 1 :]
    return found[: query.limit]


def micros(row: dict) -> int:
    return round(row["timestamp"].timestamp() * 1e6)


def matches(row: dict, test: Between | OneOf) -> bool:
    value = row[test.column]
    if isinstance(test, OneOf):
        return value in test.values
    return (test.low is None or value >= test.low) and (test.high is None or value <= test.high)


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
    price = Between("price", Decimal(10), Decimal("60.25"))
    for symbols in (None, {"BTCUSDT"}, {"NOPE"}, {"BTCUSDT", "PEPEUSDT"}):
        for limit, filters in ((1, ()), (7, (price,)), (100, ()), (1_000, (price,))):
            for start, end in ((None, None), (T0_US + 60_000_000, T0_US + 181_000_000)):
                for newest_first in (True, False):
                    query = RecordsQuery(
                        symbols=None if symbols is None else frozenset(symbols),
                        start_us=start,
                        end_us=end,
                        limit=limit,
                        newest_first=newest_first,
                        filters=filters,
                    )
                    answer = await platform.engine.records("trades", query)
                    assert answer.rows.to_pylist() == expected(everything, query), query
                    assert not answer.partial


@pytest.mark.parametrize("newest_first", [True, False])
async def test_pages_neither_repeat_nor_skip_while_rows_arrive(
    platform: Platform, *, newest_first: bool
) -> None:
    chance = random.Random(3)

    def more(first: int) -> pa.Table:
        ids = range(first, first + 40)
        # Few distinct times: most rows are told apart by the tie break.
        return rows(ids, [T0_US + chance.randrange(6) * 1_000_000 for _ in ids])

    before = [more(0), more(40)]
    platform.commit(before[0], place())
    platform.refresh()
    platform.tails["trades"].start(place(), 39)
    platform.produce(before[1], place())
    query = RecordsQuery(limit=7, newest_first=newest_first)
    whole = expected(before, replace(query, limit=1_000))
    seen: list[dict] = []
    for step in range(100):
        page = (await platform.engine.records("trades", query)).rows
        seen += page.to_pylist()
        if page.num_rows < query.limit:
            break
        query = replace(query, after=key_of(page, page.num_rows - 1, "timestamp"))
        if step > 3:
            continue
        arriving = more(80 + step * 40)
        platform.produce(arriving, place())
        platform.commit(arriving if step else pa.concat_tables([before[1], arriving]), place())
        platform.refresh()
    keys = [row["platform_sequence"] for row in seen]
    assert len(set(keys)) == len(keys)
    assert [row for row in seen if row["platform_sequence"] < 80] == whole


async def test_a_key_orders_like_the_rows(platform: Platform) -> None:
    ids = range(30)
    names = [T0_US + (i // 10) for i in ids]
    parts = [rows(ids, names, partition=partition) for partition in (0, 1)]
    platform.commit(parts[0], place(0))
    platform.refresh()
    platform.tails["trades"].start(place(0), 29)
    platform.produce(parts[1], place(1))
    for newest_first in (True, False):
        whole = RecordsQuery(limit=1_000, newest_first=newest_first)
        everything = (await platform.engine.records("trades", whole)).rows
        for index in range(0, 60, 7):
            query = replace(whole, after=key_of(everything, index, "timestamp"))
            found = (await platform.engine.records("trades", query)).rows
            assert found.to_pylist() == everything.slice(index + 1).to_pylist()


async def test_an_older_snapshot_shows_what_was_there_then(platform: Platform) -> None:
    for step in range(3):
        table = rows(range(step * 10, step * 10 + 10), [T0_US + step] * 10)
        platform.commit(table, place())
    platform.refresh()
    platform.tails["trades"].start(place(), 29)
    platform.produce(rows(range(30, 35), [T0_US] * 5), place())
    history = await platform.engine.history("trades", 10)
    assert len(history) == 3
    for count, snapshot in zip((30, 20, 10), history, strict=True):
        for when in (AsOf(snapshot.snapshot_id), AsOf(time_ms=snapshot.timestamp_ms)):
            answer = await platform.engine.records("trades", RecordsQuery(limit=100), when)
            assert answer.rows.num_rows == count
            assert answer.as_of["trades"]["hot_rows"] == 0
            assert answer.fixed is (when.snapshot_id is not None)
            found = await platform.engine.sql("SELECT count(*) AS n FROM trades", limit=1, at=when)
            assert found.rows.to_pylist() == [{"n": count}]
    for when in (AsOf(snapshot_id=1), AsOf(time_ms=1)):
        with pytest.raises(SnapshotNotFoundError):
            await platform.engine.records("trades", RecordsQuery(), when)


async def test_latest_rows_equal_a_sort(platform: Platform) -> None:
    chance = random.Random(5)
    everything = []
    for step in range(4):
        ids = range(step * 30, step * 30 + 30)
        names = [f"S{chance.randrange(7)}" for _ in ids]
        table = rows(ids, [T0_US + chance.randrange(10**6) for _ in ids], symbols=names)
        everything.append(table)
        platform.produce(table, place())
        if step < 3:
            platform.commit(table, place())
    platform.refresh()
    for symbols in (None, {"S1"}, {"S1", "S3", "NOPE"}):
        chosen = None if symbols is None else frozenset(symbols)
        found = await platform.engine.latest("trades", chosen)
        want: dict[str, dict] = {}
        whole = RecordsQuery(symbols=chosen, limit=1_000)
        for row in expected(everything, whole):
            want.setdefault(row["symbol"], row)
        assert found.rows.to_pylist() == [want[name] for name in sorted(want)]


async def test_recent_rows_come_from_memory_alone(platform: Platform) -> None:
    old = rows(range(100), [T0_US + i for i in range(100)])
    new = rows(range(100, 200), [T0_US + 1_000_000 + i for i in range(100)])
    platform.commit(old, place())
    platform.refresh()
    platform.produce(old, place())
    platform.produce(new, place())
    answer = await platform.engine.records(
        "trades", RecordsQuery(symbols=frozenset({"BTCUSDT"}), limit=50)
    )
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
    answer = await platform.engine.records("trades", RecordsQuery(symbols=frozenset({"S5USDT"})))
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
