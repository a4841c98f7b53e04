"""Faust tables whose changelog is answered for: what it refuses is raised, or written again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import structlog
from faust.types import TP

from k2.transport.single import Sent, confirmed, failure

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


class SharedTable:
    """A global table of one partition, written by one worker and read by all.

    An entry is known here at once. Faust's own tables forget one that their changelog refuses (a
    full disk), and the other workers never hear of it; here it waits for `resend`.
    """

    def __init__(self, table: Any) -> None:
        self._table = table
        self._refused: set[str] = set()

    def get(self, key: str) -> Any:
        """The entry as it is known here; None where there is none."""
        return self._table.data.get(key)

    def __setitem__(self, key: str, value: Any) -> None:
        self._table.data[key] = value
        self._send(key)

    def resend(self) -> None:
        """Write what the log refused again, as it is known here now."""
        for key in sorted(self._refused):
            self._send(key)

    def _send(self, key: str) -> None:
        self._refused.discard(key)
        sent = self._table.send_changelog(0, key, self._table.data[key])
        sent.add_done_callback(partial(self._sent, key))

    def _sent(self, key: str, sent: Sent) -> None:
        exc = failure(sent)
        if exc is not None:
            self._refused.add(key)
            log.warning("entry_not_shared", table=self._table.name, key=key, error=str(exc))


def _prefix(tp: TP) -> bytes:
    return f"{tp.topic}/{tp.partition}/".encode()
