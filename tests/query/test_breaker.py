"""Queries that fail for the lake's files again and again are refused for a while."""

from __future__ import annotations

import pytest

from k2.breaker import Limits, State
from k2.breakers import Breaker
from k2.errors import InvalidParameter, LakeError, Overloaded
from k2.testing.clock import ManualClock
from tests.query.conftest import Platform
from tests.query.rows import T0_US, place, rows


async def test_files_that_cannot_be_read_open_it_and_good_answers_close_it(
    platform: Platform,
) -> None:
    clock = ManualClock()
    breaker = Breaker("query", Limits(), clock)
    engine = platform.make_engine(breaker=breaker)
    platform.commit(rows(range(3), [T0_US + i for i in range(3)]), place())
    platform.refresh()
    away = platform.warehouse.rename(platform.warehouse.with_name("away"))
    for _ in range(5):
        with pytest.raises(InvalidParameter):
            await engine.sql("drop table trades", limit=1)
        with pytest.raises(LakeError):
            await engine.sql("select count(*) from trades where price > 0", limit=1)
    with pytest.raises(Overloaded, match="left alone") as refused:
        await engine.sql("select 1 from trades", limit=1)
    assert refused.value.details["retry_after_s"] == 60
    assert refused.value.details["status"] == 503
    away.rename(platform.warehouse)
    await clock.advance(60)
    for _ in range(2):
        found = await engine.sql("select count(*) as n from trades where price > 0", limit=1)
        assert found.rows.to_pylist() == [{"n": 2}]
    assert breaker.state is State.CLOSED
    engine.close()
