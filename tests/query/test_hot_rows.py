"""Answers from memory alone: the same as those of the whole, and only where that can be proven."""

from __future__ import annotations

import random
from dataclasses import replace

import orjson
import pyarrow as pa
import pytest

from k2.query.asked import RecordsQuery
from k2.query.encode import JSON_COLUMNS
from k2.query.filters import key_of
from k2.query.json_text import json_rows
from k2.query.row_texts import RowTexts
from tests.query.conftest import Platform
from tests.query.rows import T0_US, place, rows

NAMES = ("BTCUSDT", "ETHUSDT", "PEPEUSDT")


def some(chance: random.Random, first: int, count: int, partition: int) -> pa.Table:
    """Rows whose times tie often and are now and then hours late."""
    ids = range(first, first + count)
    late = chance.choice((0, 0, 0, 7_200_000_000))
    times = [T0_US + first * 1_000 - late + chance.randrange(20) * 1_000 for _ in ids]
    names = [chance.choice(NAMES) for _ in ids]
    return rows(ids, times, symbols=names, partition=partition, vendor_data='{"a":"b"}')


async def test_hot_answers_are_those_of_hot_and_cold_together(platform: Platform) -> None:
    chance = random.Random(17)
    answered = refused = 0
    for step in range(40):
        partition = step % 2
        table = some(chance, step * 30, 30, partition)
        platform.produce(table, place(partition), now_s=float(step))
        if step < 25:
            platform.commit(table, place(partition))
            platform.refresh()
        query = RecordsQuery(
            symbols=frozenset(chance.sample(NAMES, chance.choice((1, 2)))),
            exchanges=chance.choice((None, frozenset({"BINANCE"}), frozenset({"KRAKEN"}))),
            start_us=chance.choice((None, None, T0_US + 100_000)),
            end_us=chance.choice((None, None, T0_US + 900_000)),
            limit=chance.choice((1, 5, 40)),
            newest_first=chance.choice((True, True, False)),
        )
        hot = platform.engine.hot_records("trades", query)
        whole = await platform.engine.records("trades", query)
        if hot is None:
            refused += 1
            continue
        answered += 1
        assert hot.rows.table(whole.rows.schema).to_pylist() == whole.rows.to_pylist(), query
        assert (hot.as_of, hot.partial) == (whole.as_of, whole.partial)
        last = len(hot.rows) - 1
        assert hot.rows.key(last) == key_of(whole.rows, last, "timestamp")
        text = b"[" + b",".join(hot.texts(hot.rows)) + b"]"
        assert text == json_rows(whole.rows, parse_json=JSON_COLUMNS)
    assert answered > 10
    assert refused > 5


async def test_last_rows_as_texts_are_those_the_pool_finds(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(23)
    answered = 0
    for step in range(30):
        for partition in (0, 1):
            table = some(chance, 30 * step, 30, partition)
            platform.produce(table, place(partition))
            if chance.random() < 0.2:
                platform.commit(table, place(partition))
                platform.refresh()
        chosen = frozenset(chance.sample(NAMES, 2))
        hot = platform.engine.hot_latest("trades", chosen)
        if hot is None:
            continue
        answered += 1
        at_once = await platform.engine.latest("trades", chosen)
        with monkeypatch.context() as slow:
            slow.setattr(platform.engine, "hot_latest", lambda *_: None)
            whole = await platform.engine.latest("trades", chosen)
        assert at_once.rows.equals(whole.rows)
        assert (hot.as_of, hot.partial) == (whole.as_of, whole.partial)
        for _ in range(2):
            # Made, and then known.
            text = b"[" + b",".join(hot.texts(hot.rows)) + b"]"
            assert text == json_rows(whole.rows, parse_json=JSON_COLUMNS)
    assert answered > 5


@pytest.mark.parametrize("whole_rows", [1_000, 10])
async def test_many_last_rows_are_made_json_together(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, whole_rows: int
) -> None:
    monkeypatch.setattr("k2.query.row_texts._WHOLE_ROWS", whole_rows)
    names = [f"S{at}USDT" for at in range(60)]
    vendor = '{"a":{"b":[1,"x"]},"c":"d"}'
    made = rows(range(60), [T0_US + i for i in range(60)], symbols=names, vendor_data=vendor)
    platform.produce(made, place())
    found = platform.engine.hot_latest("trades", frozenset(names[10:50]))
    assert found is not None
    texts = RowTexts(1 << 30)
    together = b"[" + b",".join(texts.of_last(found.rows)) + b"]"
    shown = (await platform.engine.latest("trades", frozenset(names[10:50]))).rows
    assert together == json_rows(shown, parse_json=JSON_COLUMNS)
    assert len(texts._known) == (60 if whole_rows == 1_000 else 40)


async def test_texts_of_last_rows_are_those_of_all_rows(platform: Platform) -> None:
    platform.produce(rows(range(30), [T0_US + i for i in range(30)], symbols="AUSDT"), place())
    asked = RecordsQuery(symbols=frozenset({"AUSDT"}), limit=30)
    found = platform.engine.hot_records("trades", asked)
    last = platform.engine.hot_latest("trades", frozenset({"AUSDT"}))
    assert found is not None
    assert last is not None
    texts = RowTexts(1 << 30)
    newest = texts.of(found.rows)[0]
    held = texts.nbytes
    assert texts.of_last(last.rows)[0] is newest
    assert texts.nbytes == held


async def test_what_memory_cannot_prove_is_left_to_the_files(platform: Platform) -> None:
    late = rows(range(50), [T0_US + 10_000_000 + i for i in range(50)])
    platform.commit(late, place())
    platform.refresh()
    platform.tails["trades"].start(place(), 49)
    platform.produce(rows(range(50, 100), [T0_US + i for i in range(50)]), place())
    query = RecordsQuery(symbols=frozenset({"BTCUSDT"}), limit=10)
    # There are enough hot rows, but the file has later ones.
    assert platform.engine.hot_records("trades", query) is None
    assert platform.engine.hot_records("trades", replace(query, end_us=T0_US + 40)) is not None
    # Not all of a page is hot.
    assert platform.engine.hot_records("trades", replace(query, limit=51)) is None


async def test_questions_that_take_long_are_not_answered_at_once(platform: Platform) -> None:
    platform.produce(rows(range(50), [T0_US + i for i in range(50)]), place())
    query = RecordsQuery(symbols=frozenset({"BTCUSDT"}), limit=10)
    assert platform.engine.hot_records("trades", query) is not None
    for slow in (replace(query, symbols=None), replace(query, limit=5_000)):
        assert platform.engine.hot_records("trades", slow) is None


async def test_texts_are_made_once_and_let_go_above_a_bound(platform: Platform) -> None:
    platform.produce(rows(range(300), [T0_US + i for i in range(300)]), place())
    found = platform.engine.hot_records(
        "trades", RecordsQuery(symbols=frozenset({"BTCUSDT"}), limit=300)
    )
    assert found is not None
    texts = RowTexts(1 << 30)
    first = texts.of(found.rows)
    held = texts.nbytes
    assert [orjson.loads(text)["platform_sequence"] for text in first] == list(range(299, -1, -1))
    assert all(one is other for one, other in zip(first, texts.of(found.rows), strict=True))
    assert texts.nbytes == held == sum(map(len, first))
    small = RowTexts(held // 3)
    assert small.of(found.rows) == first
    assert held // 3 - 1_000 < small.nbytes <= held // 3
    assert small.of(found.rows) == first
