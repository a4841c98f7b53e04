"""What Kafka's admin client does when answers are late, odd or never come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection

import pytest
from confluent_kafka import KafkaError, KafkaException
from faust.types import TP

from k2.errors import LogError
from k2.settings import Kafka
from k2.transport.admin import TopicSpec
from k2.transport.kafka_admin import KafkaAdmin

PLACE = TP("market.trades", 3)


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


class _LetGo(KafkaAdmin):
    """Its first request is lost with the broker librdkafka had asked."""

    asked = 0

    async def _partition_counts(self, topics: Collection[str]) -> dict[str, int | None]:
        self.asked += 1
        if self.asked == 1:
            raise KafkaException(KafkaError(KafkaError._DESTROY_BROKER))
        return dict.fromkeys(topics, 4)


async def test_a_request_lost_with_its_broker_is_made_again() -> None:
    admin = _LetGo("127.0.0.1:1", Kafka(_env_file=None))
    await admin.ensure_topics([TopicSpec("market.trades", 4)])
    assert admin.asked == 2
