"""Checkpoints in a Faust table, written with their changelog confirmed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from faust.types import TP


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
        await self._table.app.producer.flush()
        await asyncio.gather(*futures)


def _prefix(tp: TP) -> bytes:
    return f"{tp.topic}/{tp.partition}/".encode()
