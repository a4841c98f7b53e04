"""Rows of files that are kept for whoever asks again: the same answers, from memory."""

from __future__ import annotations

import random
from dataclasses import replace

import orjson
import pyarrow as pa
import pytest

from k2.query.answers import HotAnswer
from k2.query.asked import RecordsQuery
from k2.query.hot_rows import HotRows
from k2.query.json_text import json_rows
from k2.query.near_rows import ColdChunk
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
        texts = [orjson.loads(text) for text in known.texts(known.rows)]
        assert texts == orjson.loads(json_rows(found.rows))
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
            table = rows(ids, times, symbols=names, partition=partition)
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
            for limit in (1, 7, 40):
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


async def test_they_can_be_let_go(platform: Platform) -> None:
    query = await quiet(platform)
    platform.engine.ease()
    assert at_once(platform, query) is None
