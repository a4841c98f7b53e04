"""An answer that the deadline cut says so, everywhere, and nothing takes it for the whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import duckdb
import pytest

from k2.query import asof, candles, records
from k2.query.answers import Answer
from k2.query.engine import QueryEngine
from k2.query.execute import Result, run_checked
from tests.query.rows import T0_US, place, rows
from tests.web.api import KEY, Api
from tests.web.test_weaknesses import ENDLESS, served

DAY = {"start_time": "2024-08-08", "end_time": "2024-08-10"}


@pytest.fixture
async def late(api: Api, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    """A server that has 0.3 s for an answer."""
    engine = api.platform.make_engine(timeout_s=0.3)
    async with served(api, queries=engine) as made:
        yield made
    engine.close()


def stick(monkeypatch: pytest.MonkeyPatch, *, after: int = 0) -> None:
    """Let the reader of files come to no end, after so many good reads."""
    read = records._cold
    left = [after]

    def cold(cursor: duckdb.DuckDBPyConnection, *more: Any) -> Any:
        if left[0]:
            left[0] -= 1
            return read(cursor, *more)
        return cursor.execute(ENDLESS).to_arrow_table()

    monkeypatch.setattr(records, "_cold", cold)


async def test_what_memory_has_is_the_answer_and_not_the_last_page(
    late: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    stick(monkeypatch)
    async with late.client.get("/v1/trades", headers=KEY) as response:
        body = await response.json()
        assert (response.status, "ETag" in response.headers) == (200, False)
        assert response.headers["Cache-Control"] == "no-store"
    assert [row["platform_sequence"] for row in body["data"]] == [14, 13, 12, 11, 10]
    assert (body["meta"]["cut_short"], body["meta"]["partial"]) == ("deadline", True)
    assert body["pagination"]["has_more"] is True
    assert body["pagination"]["next_cursor"] is None


async def test_a_full_page_that_may_lack_rows_has_no_cursor(
    late: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    stick(monkeypatch)
    asked = {"limit": 3, "order": "asc", "symbols": ["BTCUSDT", "ETHUSDT"]}
    status, body = await late.post(asked, "/v1/trades/query")
    assert (status, body["meta"]["cut_short"]) == (200, "deadline")
    assert [row["platform_sequence"] for row in body["data"]] == [10, 11, 12]
    assert body["pagination"]["next_cursor"] is None


async def test_a_replay_does_not_end_where_it_was_cut(
    late: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = rows(range(20, 30), [T0_US + 3_600_000_000 + i for i in range(10)], partition=5)
    late.platform.commit(later, place(5))
    late.platform.refresh()
    # One file at a time, so that some rows are known when the next one takes too long.
    monkeypatch.setattr(records, "_FILES", 1)
    stick(monkeypatch, after=1)
    status, body = await late.post(DAY, "/v1/replay")
    assert (status, body["detail"]["error"]) == (504, "query_timeout")


async def test_quotes_are_not_looked_for_behind_half_the_trades(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await api.get("/v1/asof", symbol="ETHUSDT"))[0] == 200
    find = records.find
    monkeypatch.setattr(asof, "find", lambda *given: replace(find(*given), cut_short=True))
    assert (await api.get("/v1/asof", symbol="ETHUSDT"))[0] == 504


async def test_a_cut_profile_makes_the_whole_partial(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(cursor: Any, text: str, limit: int, values: Any) -> Result:
        found = run_checked(cursor, text, limit, values)
        return replace(found, cut_short=True) if text == candles.PROFILE else found

    monkeypatch.setattr(candles, "run_checked", run)
    asked = {"symbols": ["BTCUSDT"], "metrics": ["volume_profile"], "interval": "1min", **DAY}
    status, body = await api.post(asked, "/v1/aggregations")
    assert (status, len(body["data"])) == (200, 1)
    assert (body["meta"]["cut_short"], body["meta"]["partial"]) == ("deadline", True)


@pytest.mark.parametrize("path", ["/v1/symbols", "/v1/summary/BTCUSDT/2024-08-08"])
async def test_nobody_keeps_what_is_partial(
    api: Api, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with api.client.get(path, headers=KEY) as response:
        assert "max-age" in response.headers["Cache-Control"]
    run = QueryEngine._run

    async def partial(self: QueryEngine, *given: Any) -> Any:
        found: Answer = await run(self, *given)
        return replace(found, partial=True)

    monkeypatch.setattr(QueryEngine, "_run", partial)
    async with api.client.get(path, headers=KEY) as response:
        assert response.headers["Cache-Control"] == "no-store"
