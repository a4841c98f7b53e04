"""A Kafka that is not there is named, waited for, and given up in the end."""

from __future__ import annotations

import asyncio
import socket

import pytest
from structlog.testing import capture_logs

from k2.errors import LogError
from k2.testing.clock import ManualClock, turns
from k2.transport.reach import wait_reachable, why_unreachable

SERVERS = ("one:9092", "two:9092")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


class Net:
    """Addresses and why they do not answer."""

    def __init__(self) -> None:
        self.reasons = dict.fromkeys(SERVERS, "connection refused")

    async def probe(self, address: str) -> str:
        return self.reasons[address]


async def test_it_is_told_at_once_then_every_five_seconds_and_ends(clock: ManualClock) -> None:
    waiting = asyncio.ensure_future(wait_reachable(SERVERS, 12.0, probe=Net().probe, clock=clock))
    with capture_logs() as said:
        await turns()
        assert [line["event"] for line in said] == ["kafka_unreachable"]
        await clock.advance(12.0)
    assert [line["waited_s"] for line in said] == [0.0, 5.0, 10.0]
    assert said[0]["servers"] == dict.fromkeys(SERVERS, "connection refused")
    assert said[0]["giving_up_after_s"] == 12.0
    with pytest.raises(LogError, match=r"one:9092 \(connection refused\), two:9092.*12 s.*START"):
        await waiting


async def test_one_server_that_answers_is_enough(clock: ManualClock) -> None:
    net = Net()
    waiting = asyncio.ensure_future(wait_reachable(SERVERS, 60.0, probe=net.probe, clock=clock))
    await clock.advance(3.0)
    assert not waiting.done()
    net.reasons["two:9092"] = ""
    await clock.advance(1.0)
    assert waiting.done()
    await waiting


async def test_reasons_are_the_system_s_own() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        assert "refused" in await why_unreachable(address)
        listening.listen()
        assert await why_unreachable(address) == ""
    assert await why_unreachable("no-such-host.invalid:9092") != ""
