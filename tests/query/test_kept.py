"""Kept answers: a question gets the same bytes while, and only while, its rows are the same."""

from __future__ import annotations

import random

import pytest

from k2.query.asked import RecordsQuery
from k2.query.bounds import Bounds
from k2.query.kept import KeptAnswers, footprint
from tests.query.conftest import Platform
from tests.query.rows import T0_US, place, rows

HOUR_US = 3_600_000_000


def test_an_answer_belongs_to_what_it_was_read_from() -> None:
    kept: KeptAnswers[str] = KeptAnswers(1_000)
    kept.put("q", ("a", "b"), "old", 10)
    assert kept.get("q", ("a", "b")) == "old"
    assert kept.get("q", ("a",)) is None
    assert kept.get("other", ("a", "b")) is None
    kept.put("q", ("a",), "new", 20)
    assert kept.get("q", ("a", "b")) is None
    assert kept.get("q", ("a",)) == "new"
    assert kept.nbytes == 20


def test_the_ones_asked_last_stay() -> None:
    kept: KeptAnswers[int] = KeptAnswers(1_000)
    for number in range(12):
        kept.put(number, (), number, 100)
        kept.get(0, ())
    assert kept.nbytes == 1_000
    assert kept.get(0, ()) == 0
    assert kept.get(1, ()) is None
    assert kept.get(11, ()) == 11
    kept.put("large", (), 1, 101)
    assert kept.get("large", ()) is None


async def test_a_footprint_changes_with_every_row_within_its_bounds(platform: Platform) -> None:
    """Rows come early and late, are committed and queried in any order; a kept answer is right."""
    chance = random.Random(23)
    kept: KeptAnswers[list[dict]] = KeptAnswers(10**9)
    hits = 0
    produced = committed = 0
    tables = []
    for _ in range(200):
        step = chance.choice(("produce", "commit", *["ask"] * 6))
        if step == "produce":
            hour = T0_US + chance.randrange(4) * HOUR_US
            times = [hour + i for i in range(10)]
            names = [chance.choice(("AAA", "BBB")) for _ in times]
            table = rows(range(produced, produced + 10), times, symbols=names)
            platform.produce(table, place())
            tables.append(table)
            produced += 10
        elif step == "commit" and committed < len(tables):
            platform.commit(tables[committed], place())
            committed += 1
            platform.refresh()
            platform.tails["trades"].trim(
                1e9, platform.engine.committed("trades"), max_minutes=1.0, max_bytes=10**9
            )
        else:
            start = T0_US + chance.randrange(4) * HOUR_US
            query = RecordsQuery(
                symbols=frozenset({chance.choice(("AAA", "BBB"))}),
                start_us=start,
                end_us=start + HOUR_US,
                limit=7,
            )
            seen = platform.engine.glance("trades", query.bounds)
            answer = await platform.engine.records("trades", query)
            assert (seen is None) == (answer.read is None)
            if seen is None or answer.read is None:
                continue
            assert seen.as_of == answer.as_of
            known = kept.get(query, seen.read)
            if known is None:
                kept.put(query, answer.read, answer.rows.to_pylist(), 1)
            else:
                hits += 1
                assert known == answer.rows.to_pylist()
    assert hits > 10


async def test_what_lacks_rows_has_no_footprint(platform: Platform) -> None:
    platform.produce(rows(range(10), [T0_US + i for i in range(10)]), place())
    pinned = platform.engine.pin("trades")
    assert footprint(pinned, Bounds(frozenset({"BTCUSDT"}))) is None
    assert footprint(pinned, Bounds(frozenset({"ETHUSDT"}))) == ()
    # Rows that left memory before the lake had them.
    platform.tails["trades"].trim(
        0.0, platform.engine.committed("trades"), max_minutes=1, max_bytes=0
    )
    pinned = platform.engine.pin("trades")
    assert pinned.partial
    assert footprint(pinned, Bounds(frozenset({"ETHUSDT"}))) is None


@pytest.mark.parametrize("asked", [{"limit": 3}, {"limit": 3, "fields": "trade_id,price"}])
async def test_a_kept_page_says_the_same(asked: dict[str, object], tmp_path, monkeypatch) -> None:
    from tests.web.api import running

    async with running(tmp_path, monkeypatch) as api:
        past = {"symbol": "BTCUSDT", "end_time": T0_US // 1_000 + 7_500, **asked}
        _, first = await api.get("/v1/trades", **past)
        _, second = await api.get("/v1/trades", **past)
        assert first["meta"]["files_read"] == 1
        assert second["meta"]["files_read"] == 0
        for body in (first, second):
            for name in ("correlation_id", "timestamp", "files_read", "fresh_ms"):
                del body["meta"][name]
        assert first == second
        # A late row within the bounds is in the next answer.
        late = rows([15], [T0_US + 7_000_001])
        api.platform.produce(late, place())
        _, third = await api.get("/v1/trades", **past)
        assert third["data"][0]["trade_id"] == late["trade_id"][0].as_py()
