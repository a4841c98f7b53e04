"""Messages Faust sends one by one, each answered for: by itself it drops what the log refused."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

Sent = asyncio.Future[Any]


class Messages:
    """Plain messages to one topic of Faust."""

    def __init__(self, topic: Any) -> None:
        self._topic = topic

    async def send(self, *, value: Any) -> None:
        """Hand on a message; what the log refuses of it later is logged, by Faust, as a warning.

        Raises `LogError` when the log takes none at all.
        """
        message = self._topic.as_future_message(value=value)
        message.add_done_callback(failure)
        await self._topic.publish_message(message)


def failure(sent: Sent) -> BaseException | None:
    """What became of a message that is done: None, or why the log refused it."""
    return None if sent.cancelled() else sent.exception()


async def confirmed(producer: Any, sent: Sequence[Sent]) -> None:
    """Wait until the log has all that was sent soon. Raises the first failure.

    Who waits may be cancelled, the messages not: Faust could not say any more how each one ended.
    """
    for one in sent:
        one.add_done_callback(failure)
    await producer.flush()
    await asyncio.gather(*map(asyncio.shield, sent))
