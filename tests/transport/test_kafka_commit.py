"""Commits of a worker whose partitions have left meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from k2.transport.kafka import ConsumerThread

OURS, LEFT = TP("market.trades", 0), TP("market.trades", 1)


@pytest.fixture
def thread(monkeypatch: pytest.MonkeyPatch) -> ConsumerThread:
    """A consumer's thread that has partition 0; what Faust's own commit was given is `asked`."""
    made = ConsumerThread.__new__(ConsumerThread)
    made.asked = []  # type: ignore[attr-defined]

    async def commit(self: Any, offsets: dict[TP, int]) -> bool:
        self.asked.append(offsets)
        return True

    monkeypatch.setattr(driver.AIOKafkaConsumerThread, "_commit", commit)
    monkeypatch.setattr(ConsumerThread, "assignment", lambda _: {OURS})
    return made


async def test_a_commit_of_partitions_that_all_left_is_none(thread: ConsumerThread) -> None:
    assert await thread._commit({LEFT: 7}) is False
    assert await thread._commit({}) is False
    assert thread.asked == []  # type: ignore[attr-defined]


async def test_a_commit_of_what_is_assigned_goes_on(thread: ConsumerThread) -> None:
    assert await thread._commit({OURS: 3, LEFT: 7}) is True
    assert thread.asked == [{OURS: 3, LEFT: 7}]  # type: ignore[attr-defined]
