"""A question is one execution, whether memory alone had its answer or not."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from k2.errors import LakeError
from k2.query.asked import RecordsQuery
from tests.query.conftest import Platform
from tests.query.rows import T0_US, place, rows

BTC = frozenset({"BTCUSDT"})


def counted(kind: str, status: str = "ok") -> float:
    labels = {"query_type": kind, "status": status}
    return REGISTRY.get_sample_value("k2_query_executions_total", labels) or 0.0


async def test_what_memory_cannot_answer_is_counted_where_it_is_answered(
    platform: Platform,
) -> None:
    platform.commit(rows(range(10), [T0_US + i for i in range(10)]), place())
    platform.refresh()
    before = counted("latest"), counted("records")
    found = await platform.engine.latest("trades", BTC)
    assert found.rows.num_rows == 1
    query = RecordsQuery(symbols=BTC, limit=5)
    assert platform.engine.hot_records("trades", query) is None
    assert (await platform.engine.records("trades", query)).rows.num_rows == 5
    assert (counted("latest"), counted("records")) == (before[0] + 1, before[1] + 1)


async def test_what_memory_answers_is_counted_too(platform: Platform) -> None:
    platform.produce(rows(range(10), [T0_US + i for i in range(10)]), place())
    before = counted("latest"), counted("records")
    assert platform.engine.hot_records("trades", RecordsQuery(symbols=BTC, limit=5)) is not None
    assert (await platform.engine.latest("trades", BTC)).rows.num_rows == 1
    assert (counted("latest"), counted("records")) == (before[0] + 1, before[1] + 1)


async def test_a_failure_at_once_is_one_error(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise LakeError("the lake is away")

    monkeypatch.setattr(platform.engine, "pin", broken)
    before = counted("records", "error")
    with pytest.raises(LakeError):
        platform.engine.hot_records("trades", RecordsQuery(symbols=BTC, limit=5))
    assert counted("records", "error") == before + 1
