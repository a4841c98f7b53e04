"""Messages Faust sends one by one, each answered for: by itself it drops what the log refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from aiokafka.errors import (
    InvalidProducerEpoch,
    KafkaError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
)

from k2.errors import LogError

Sent = asyncio.Future[Any]

#: What was lost before them leaves a hole in the numbers of a producer, which the broker refuses to
#: close for the life of that producer.
_FOR_GOOD: Final = (OutOfOrderSequenceNumber, InvalidProducerEpoch, ProducerFenced)


class Messages:
    """Plain messages to one topic of Faust.

    `on_broken`: told of an error after which this worker's producer can write there no more.
    """

    def __init__(self, topic: Any, on_broken: Callable[[BaseException], None]) -> None:
        self._topic, self._on_broken = topic, on_broken

    async def send(self, *, value: Any, within_s: float = 0.0) -> None:
        """Hand on a message; what the log refuses of it later is logged, by Faust, as a warning.

        `within_s`: seconds to wait until the log has it. Raises `LogError` when it has not by then,
        or takes no message at all.
        """
        message = self._topic.as_future_message(value=value)
        message.add_done_callback(partial(outcome, on_broken=self._on_broken))
        await self._topic.publish_message(message)
        if within_s:
            await self._confirmed(message, within_s)

    async def _confirmed(self, message: Sent, within_s: float) -> None:
        name = self._topic.get_topic_name()
        try:
            await asyncio.wait_for(asyncio.shield(message), within_s)
        except TimeoutError as exc:
            raise LogError(
                f"{name} has not confirmed a message within {within_s:.0f} s, and may still take "
                "it; see whether the log is there, then ask again",
                topic=name,
            ) from exc
        except KafkaError as exc:
            raise LogError(f"{name} did not take a message: {exc!r}", topic=name) from exc


def failure(sent: Sent) -> BaseException | None:
    """What became of a message that is done: None, or why the log refused it."""
    return None if sent.cancelled() else sent.exception()


def outcome(sent: Sent, on_broken: Callable[[BaseException], None]) -> BaseException | None:
    """The same; `on_broken` is told when only a new producer could mend it."""
    exc = failure(sent)
    if isinstance(exc, _FOR_GOOD):
        on_broken(exc)
    return exc


async def confirmed(producer: Any, sent: Sequence[Sent]) -> None:
    """Wait until the log has all that was sent soon. Raises the first failure.

    Who waits may be cancelled, the messages not: Faust could not say any more how each one ended.
    """
    for one in sent:
        one.add_done_callback(failure)
    await producer.flush()
    await asyncio.gather(*map(asyncio.shield, sent))
