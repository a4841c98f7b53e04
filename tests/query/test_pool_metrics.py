"""The query slots as Prometheus sees them."""

from __future__ import annotations

import asyncio
import threading

import duckdb
import pytest
from prometheus_client import REGISTRY

from k2.errors import Overloaded
from k2.query.pool import QueryPool


def shown(name: str) -> float:
    return REGISTRY.get_sample_value(f"k2_connection_pool_{name}") or 0.0


async def test_slots_waits_and_refusals_are_shown() -> None:
    database = duckdb.connect(":memory:")
    pool = QueryPool(database, size=2, queue_size=1, timeout_s=30)
    assert (shown("size"), shown("active_connections")) == (2, 0)
    waits, refused = shown("wait_time_seconds_count"), shown("acquisition_timeouts_total")
    go = threading.Event()
    held = [asyncio.create_task(pool.run(lambda _: go.wait())) for _ in range(2)]
    await asyncio.sleep(0)
    assert (shown("active_connections"), shown("available_connections")) == (2, 0)
    with pytest.raises(Overloaded):
        await pool.run(lambda _: 1, timeout_s=0.01)
    assert shown("acquisition_timeouts_total") == refused + 1
    go.set()
    await asyncio.gather(*held)
    await asyncio.sleep(0)
    assert (shown("active_connections"), shown("available_connections")) == (0, 2)
    assert shown("wait_time_seconds_count") == waits + 3
    pool.close()
    database.close()
