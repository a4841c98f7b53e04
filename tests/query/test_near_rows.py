"""Rows of files that are kept for whoever asks again: the same answers, from memory."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pyarrow as pa
import pytest

from k2.lake.files import symbol_bucket
from k2.query.answers import HotAnswer
from k2.query.asked import RecordsQuery
from k2.query.encode import JSON_COLUMNS
from k2.query.hot_rows import HotRows
from k2.query.json_text import json_rows
from k2.query.near_rows import ColdChunk, NearRows
from tests.query.conftest import Platform
from tests.query.rows import T0_US, place, rows
from tests.query.test_records import expected

BTC = frozenset({"BTCUSDT"})
SYMBOLS = ("BTCUSDT", "ETHUSDT", "PEPEUSDT")


def at_once(platform: Platform, query: RecordsQuery) -> HotAnswer[HotRows] | None:
    return platform.engine.hot_records("trades", query)


def forget(platform: Platform) -> None:
    """Memory lets go of what the lake has."""
    committed = platform.tables["trades"].vector()
    platform.tails["trades"].trim(1.0, committed, max_minutes=0.0, max_bytes=1 << 30)


async def asked_twice(platform: Platform, query: RecordsQuery) -> list[dict]:
    """Both answers of a question, found to be the same; the second from memory where it is full."""
    found = await platform.engine.records("trades", query)
    again = await platform.engine.records("trades", query)
    assert again.rows.equals(found.rows)
    known = at_once(platform, query)
    if found.rows.num_rows == query.limit and known is not None:
        schema = found.rows.schema
        assert known.rows.table(schema).to_pylist() == found.rows.to_pylist()
        text = b"[" + b",".join(known.texts(known.rows)) + b"]"
        assert text == json_rows(found.rows, parse_json=JSON_COLUMNS)
    return found.rows.to_pylist()


@pytest.mark.parametrize("seed", range(4))
async def test_answers_are_those_of_a_plain_sort_whatever_comes_between(
    platform: Platform, seed: int
) -> None:
    chance = random.Random(seed)
    everything: list[pa.Table] = []
    waiting: dict[int, list[pa.Table]] = {0: [], 1: []}
    served = 0
    for step in range(12):
        for partition, uncommitted in waiting.items():
            ids = range(step * 20, step * 20 + 20)
            # Late rows land in memory behind rows of files, and the other way round.
            late = chance.choice((0, 0, 90_000_000, 7_200_000_000))
            times = [T0_US + step * 60_000_000 - late + chance.randrange(9) * 1_000 for _ in ids]
            names = [chance.choice(SYMBOLS) for _ in ids]
            vendor = f'{{"step":{step}}}'
            table = rows(ids, times, symbols=names, partition=partition, vendor_data=vendor)
            everything.append(table)
            uncommitted.append(table)
            platform.produce(table, place(partition))
            if chance.random() < 0.6:
                platform.commit(pa.concat_tables(uncommitted), place(partition))
                uncommitted.clear()
        if step % 3 == 1:
            platform.refresh()
            forget(platform)
        for symbols in (BTC, frozenset({"ETHUSDT", "PEPEUSDT"})):
            for limit in (1, 7, 40, 90):
                query = RecordsQuery(symbols=symbols, limit=limit)
                assert await asked_twice(platform, query) == expected(everything, query)
                known = at_once(platform, query)
                served += known is not None and _has_files(known)
    assert served, "no answer had rows of files"


def _has_files(known: HotAnswer[HotRows]) -> bool:
    return any(isinstance(chunk, ColdChunk) for chunk in known.rows.chunks)


async def quiet(platform: Platform) -> RecordsQuery:
    """Ten rows in a file, two in memory; the question for seven was asked before."""
    old = rows(range(10), [T0_US + i for i in range(10)])
    platform.commit(old, place())
    platform.refresh()
    platform.tails["trades"].start(place(), 9)
    platform.produce(rows([10, 11], [T0_US + 100, T0_US + 101]), place())
    query = RecordsQuery(symbols=BTC, limit=7)
    assert at_once(platform, query) is None
    assert (await platform.engine.records("trades", query)).files_read == 1
    return query


async def test_the_second_time_no_file_is_opened(platform: Platform) -> None:
    query = await quiet(platform)
    assert (await platform.engine.records("trades", query)).files_read == 0
    known = at_once(platform, query)
    assert known is not None
    assert known.rows.sequences().tolist() == [11, 10, 9, 8, 7, 6, 5]


async def test_what_came_since_is_in_the_answer(platform: Platform) -> None:
    query = await quiet(platform)
    late = rows([12], [T0_US + 8])  # a tie with a row of the file
    platform.produce(late, place())
    known = at_once(platform, query)
    assert known is not None
    assert known.rows.sequences().tolist() == [11, 10, 9, 12, 8, 7, 6]


async def test_other_questions_are_not_answered_from_it(platform: Platform) -> None:
    query = await quiet(platform)
    for other in (
        replace(query, limit=8),
        replace(query, newest_first=False),
        replace(query, exchanges=frozenset({"KRAKEN"})),
        replace(query, symbols=frozenset({"ETHUSDT"})),
        replace(query, end_us=T0_US + 50),
    ):
        assert at_once(platform, other) is None, other


async def test_fewer_rows_than_asked_for_are_no_full_page(platform: Platform) -> None:
    query = replace(await quiet(platform), limit=50)
    assert (await platform.engine.records("trades", query)).rows.num_rows == 12
    assert at_once(platform, query) is None


async def test_another_list_of_files_is_read_anew(platform: Platform) -> None:
    query = await quiet(platform)
    platform.commit(rows([10, 11], [T0_US + 100, T0_US + 101]), place())
    platform.refresh()
    forget(platform)
    assert at_once(platform, query) is None
    found = await platform.engine.records("trades", query)
    assert found.rows["platform_sequence"].to_pylist() == [11, 10, 9, 8, 7, 6, 5]
    assert found.files_read == 2


async def test_rows_another_engine_deletes_do_not_come_back(platform: Platform) -> None:
    query = await quiet(platform)
    platform.catalog.load_table("market_data.trades").delete("platform_sequence < 10")
    platform.refresh()
    forget(platform)  # the older snapshot is no longer the cheaper one
    assert at_once(platform, query) is None
    found = await platform.engine.records("trades", query)
    assert found.rows["platform_sequence"].to_pylist() == [11, 10]


async def test_oldest_first_is_not_answered_while_a_file_may_have_older_rows(
    platform: Platform,
) -> None:
    for first in (0, 10):
        platform.commit(
            rows(range(first, first + 10), [T0_US + first + i for i in range(10)]), place()
        )
    platform.refresh()
    platform.tails["trades"].start(place(), 19)
    platform.produce(rows(range(20, 25), [T0_US + 5] * 5), place())
    query = RecordsQuery(symbols=BTC, limit=5, newest_first=False)
    assert at_once(platform, query) is None


async def test_of_files_in_which_the_first_have_too_few_all_are_kept(platform: Platform) -> None:
    every = (f"S{number}USDT" for number in itertools.count())
    neighbour = next(s for s in every if symbol_bucket(s) == symbol_bucket("BTCUSDT"))
    names = ["BTCUSDT"] + [neighbour] * 99
    for first in range(0, 400, 100):
        ids = range(first, first + 100)
        times = [T0_US + ident for ident in ids]
        platform.commit(rows(ids, times, symbols=names), place())
    platform.refresh()
    query = RecordsQuery(symbols=BTC, limit=3)
    first = await platform.engine.records("trades", query)
    again = await platform.engine.records("trades", query)
    assert first.rows["platform_sequence"].to_pylist() == [300, 200, 100]
    assert again.rows.equals(first.rows)
    assert (first.files_read, again.files_read) == (3, 0)
    known = at_once(platform, query)
    assert known is not None
    assert known.rows.sequences().tolist() == [300, 200, 100]


def test_questions_without_an_answer_weigh_something_too() -> None:
    kept = NearRows(1 << 20)
    nothing = rows([], [])
    for number in range(1_000):
        query = RecordsQuery(symbols=frozenset((f"S{number}",)))
        kept.keep(query, 0, [], None, nothing)
    assert kept.nbytes <= 1 << 20
    assert kept.get(RecordsQuery(symbols=frozenset(("S0",))), 0, [], None) is None
    assert kept.get(query, 0, [], None) is not None


def test_what_was_read_from_an_edge_on_serves_from_there_on_only() -> None:
    kept = NearRows(1 << 20)
    query = RecordsQuery(symbols=BTC)
    kept.keep(query, 0, [], T0_US, rows([1], [T0_US]))
    known = [kept.get(query, 0, [], edge) is not None for edge in (None, T0_US - 1, T0_US)]
    assert known == [False, False, True]


def test_rows_of_another_writer_without_a_place_are_not_kept() -> None:
    kept = NearRows(1 << 20)
    table = rows([1], [T0_US])
    at = table.schema.get_field_index("log_topic")
    table = table.set_column(at, table.schema.field(at), pa.nulls(1, pa.string()))
    query = RecordsQuery(symbols=BTC)
    kept.keep(query, 0, [], None, table)
    assert kept.get(query, 0, [], None) is None


async def test_they_can_be_let_go(platform: Platform) -> None:
    query = await quiet(platform)
    platform.engine.ease()
    assert at_once(platform, query) is None
