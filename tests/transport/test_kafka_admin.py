"""What Kafka's admin client does when answers are late, odd or never come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from faust.types import TP

from k2.errors import LogError
from k2.settings import Kafka
from k2.transport.kafka_admin import KafkaAdmin

PLACE = TP("market.trades", 3)
INVALID = -1001


class Client:
    """librdkafka's admin client as far as `bounds` uses it: one answer per request."""

    def __init__(self, answers: list[int | KafkaError]) -> None:
        self.answers = answers
        self.asked = 0

    def list_offsets(self, places: dict[Any, Any], **_: Any) -> dict[Any, Future[Any]]:
        return {place: self._answer() for place in places}

    def _answer(self) -> Future[Any]:
        self.asked += 1
        answer, future = self.answers.pop(0), Future[Any]()
        if isinstance(answer, KafkaError):
            future.set_exception(KafkaException(answer))
        else:
            future.set_result(SimpleNamespace(offset=answer))
        return future


def admin_with(answers: list[int | KafkaError], **options: float) -> tuple[KafkaAdmin, Client]:
    admin = KafkaAdmin("kafka:9092", Kafka(_env_file=None, **options))
    client = admin._client = Client(answers)
    admin._open = lambda: client  # one that holds on to an old leader is made anew
    return admin, client


@pytest.mark.parametrize(
    "code",
    [
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
    ],
)
async def test_a_leader_that_is_being_found_is_asked_again(code: int) -> None:
    admin, client = admin_with([KafkaError(code), 2, 7])
    assert await admin.bounds([PLACE]) == {PLACE: (2, 7)}
    assert client.asked == 3


async def test_an_invalid_offset_is_no_end() -> None:
    admin, client = admin_with([2, INVALID, 2, 7])
    assert await admin.bounds([PLACE]) == {PLACE: (2, 7)}
    assert client.asked == 4


async def test_an_offset_that_stays_invalid_is_an_error_that_names_the_partition() -> None:
    admin, _ = admin_with([2, INVALID], request_timeout_s=1e-9, session_timeout_s=1e-10)
    with pytest.raises(LogError, match=r"market\.trades\[3\] has no offset yet, only -1001"):
        await admin.bounds([PLACE])


@pytest.fixture
async def silent() -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A server that takes connections and never answers; its address, and when one came."""
    came = asyncio.Event()

    async def hold(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        try:
            await asyncio.Event().wait()
        finally:
            writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    yield f"{host}:{port}", came
    server.close()


@pytest.mark.timeout(30)
async def test_closing_ends_the_calls_under_way(silent: tuple[str, asyncio.Event]) -> None:
    """Nothing may wait for a client that is gone: a thread that did kept the process for ever."""
    address, came = silent
    admin = KafkaAdmin(address, Kafka(_env_file=None))
    asking = asyncio.ensure_future(admin.bounds([PLACE]))
    await came.wait()
    await admin.close()
    with pytest.raises(LogError, match=f"{address} did not answer: the client was closed"):
        await asking


@pytest.mark.timeout(30)
async def test_a_call_can_be_given_up(silent: tuple[str, asyncio.Event]) -> None:
    address, came = silent
    admin = KafkaAdmin(address, Kafka(_env_file=None))
    asking = asyncio.ensure_future(admin.bounds([PLACE]))
    await came.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await admin.close()
