"""Messages one by one: taken by both logs, and what a log refuses is never lost unheard."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from aiokafka.errors import OutOfOrderSequenceNumber
from structlog.testing import capture_logs

from k2.errors import LogError
from k2.transport.single import Messages, confirmed
from tests.local_log.driver import fill_disk
from tests.transport.drivers import PATIENCE_S, Collector, running


def fail(exc: BaseException) -> None:
    raise exc


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk of the embedded log."""
    fill_disk(monkeypatch)


async def test_messages_arrive_in_order(driver: Any) -> None:
    collector = Collector(driver, await driver.topic())
    async with running(collector.app) as app:
        messages = Messages(app.topic(collector.topic, value_serializer="json"), fail)
        for number in range(2):
            await messages.send(value={"number": number})
        await messages.send(value={"number": 2}, within_s=PATIENCE_S)
        assert app.producer.buffer.size == 0
        await collector.until(lambda: len(collector.values) == 3)
    assert collector.values == [b'{"number":0}', b'{"number":1}', b'{"number":2}']


@pytest.mark.parametrize("driver", ["local"], indirect=True)
@pytest.mark.usefixtures("full")
async def test_a_refused_message_is_said_and_not_left_over(
    driver: Any, lost: list[dict[str, Any]]
) -> None:
    app, topic = await driver.writer(), await driver.topic()
    with capture_logs(), pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("faust.topics.logger.warning", said.append)
        messages = Messages(app.topic(topic, value_serializer="json"), fail)
        await messages.send(value={"number": 1})
        await app.producer.flush()
        await asyncio.sleep(0)
        assert [f"{topic} error the disk is full" in words for words in said] == [True]
        with pytest.raises(LogError, match="the disk is full"):
            await messages.send(value={"number": 2}, within_s=PATIENCE_S)
    gc.collect()
    assert lost == []


@pytest.mark.parametrize("driver", ["local"], indirect=True)
@pytest.mark.usefixtures("full")
async def test_every_message_has_to_be_in_the_log(driver: Any, lost: list[dict[str, Any]]) -> None:
    app, topic = await driver.writer(), await driver.topic()
    sent = [app.topic(topic, value_serializer="json").send_soon(value=value) for value in (1, 2)]
    with pytest.raises(LogError, match="the disk is full"):
        await confirmed(app.producer, sent)
    del sent
    gc.collect()
    assert lost == []


@pytest.mark.parametrize("driver", ["local"], indirect=True)
async def test_who_stops_waiting_does_not_take_the_message_back(
    driver: Any, lost: list[dict[str, Any]]
) -> None:
    app, topic = await driver.writer(), await driver.topic()
    sent = app.topic(topic, value_serializer="json").send_soon(value=1)
    await given_up(app.producer, sent)
    assert (await sent).offset == 0
    assert lost == []


@pytest.mark.parametrize("driver", ["local"], indirect=True)
@pytest.mark.usefixtures("full")
async def test_nor_leaves_its_failure_to_nobody(driver: Any, lost: list[dict[str, Any]]) -> None:
    app, topic = await driver.writer(), await driver.topic()
    await given_up(app.producer, app.topic(topic, value_serializer="json").send_soon(value=1))
    gc.collect()
    assert lost == []


class Silent:
    """A topic whose log does not answer, or says `exc`."""

    def __init__(self, exc: Exception | None = None) -> None:
        self._exc = exc

    def get_topic_name(self) -> str:
        return "k2.degradation.control"

    def as_future_message(self, *, value: Any) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().create_future()

    async def publish_message(self, message: asyncio.Future[Any]) -> None:
        if self._exc is not None:
            message.set_exception(self._exc)


async def test_a_log_that_does_not_answer_is_not_waited_for_for_ever() -> None:
    with pytest.raises(LogError, match=r"k2\.degradation\.control has not confirmed .* within 0 s"):
        await Messages(Silent(), fail).send(value=1, within_s=0.01)


async def test_a_producer_that_can_write_no_more_is_told_of() -> None:
    broken: list[BaseException] = []
    error = OutOfOrderSequenceNumber()
    messages = Messages(Silent(error), broken.append)
    await messages.send(value=1)
    await asyncio.sleep(0)
    assert broken == [error]
    with pytest.raises(LogError, match="did not take a message"):
        await messages.send(value=2, within_s=1)


async def given_up(producer: Any, sent: asyncio.Future[Any]) -> None:
    """Wait for the log to confirm `sent`, but not until it has; then until it is done."""
    waiting = asyncio.ensure_future(confirmed(producer, [sent]))
    await asyncio.sleep(0)
    assert not sent.done()
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    await asyncio.wait([sent])
    await producer.stop()  # its buffer remembers the last message
