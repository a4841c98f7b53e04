"""Faust tables whose changelog is answered for: what it refuses is raised, or written again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import structlog
from faust.types import TP

from k2.transport.single import Sent, confirmed, outcome

log = structlog.get_logger(__name__)


class Tables(NamedTuple):
    """The Faust tables of a worker; None: those that its roles, or this platform, do without."""

    continuity: Any
    shed: Any
    degradation: Any
    reference: Any


class FaustCheckpoints:
    """`CheckpointTable` over an in-memory Faust table with a changelog.

    The partition is given, not taken from the current event: a checkpoint is also written when a
    partition is idle or leaves, outside of any stream.
    """

    def __init__(self, table: Any) -> None:
        self._table = table

    def load(self, tp: TP) -> dict[bytes, bytes]:
        """Every entry of a partition; the table was recovered before anybody asks."""
        prefix = _prefix(tp)
        return {
            key[len(prefix) :]: value
            for key, value in dict(self._table.data.items()).items()
            if key.startswith(prefix)
        }

    async def store(self, tp: TP, entries: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Write entries (None deletes), in order; done once the log has acknowledged them."""
        futures = []
        for name, value in entries:
            key = _prefix(tp) + name
            if value is None:
                self._table.data.pop(key, None)
            else:
                self._table.data[key] = value
            futures.append(self._table.send_changelog(tp.partition, key, value))
        await confirmed(self._table.app.producer, futures)


@dataclass(eq=False, slots=True)
class _Write:
    """An entry the log does not have yet."""

    value: Any
    refused: bool = False


class SharedTable:
    """A global table of one partition, written by one worker and read by all.

    An entry is known here at once. Faust's own tables forget one that their changelog refuses (a
    full disk), and the other workers never hear of it; here it waits for `resend`.
    `on_broken`: told of an error after which this worker's producer can write there no more.
    """

    def __init__(self, table: Any, on_broken: Callable[[BaseException], None]) -> None:
        self._table, self._on_broken = table, on_broken
        #: Not in the table, which takes older ones once more from its changelog, a while later.
        self._unconfirmed: dict[str, _Write] = {}

    def get(self, key: str) -> Any:
        """The entry as it is known here; None where there is none."""
        write = self._unconfirmed.get(key)
        return self._table.data.get(key) if write is None else write.value

    def __setitem__(self, key: str, value: Any) -> None:
        write = self._unconfirmed[key] = _Write(value)
        self._send(key, write)

    def resend(self) -> None:
        """Write again what the log refused."""
        for key, write in list(self._unconfirmed.items()):
            if write.refused:
                write.refused = False
                self._send(key, write)

    def forget(self) -> None:
        """Somebody else writes from now on: what the log has is what holds."""
        self._unconfirmed.clear()

    def _send(self, key: str, write: _Write) -> None:
        sent = self._table.send_changelog(0, key, write.value)
        sent.add_done_callback(partial(self._sent, key, write))

    def _sent(self, key: str, write: _Write, sent: Sent) -> None:
        exc = outcome(sent, self._on_broken)
        if self._unconfirmed.get(key) is not write:
            return
        if exc is None:
            self._table.data[key] = write.value
            del self._unconfirmed[key]
        else:
            write.refused = True
            log.warning("entry_not_shared", table=self._table.name, key=key, error=str(exc))


def _prefix(tp: TP) -> bytes:
    return f"{tp.topic}/{tp.partition}/".encode()
