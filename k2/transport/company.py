"""Small batches of one topic that were fetched together, worked on in one call.

Decoding or judging 16 records takes almost as long as 500: with many partitions and a feed that
brings each a few records at a time, what a call costs is all there is to save.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from k2.transport.batch import LogBatch

T = TypeVar("T")

#: Larger batches are better off alone: what a call costs is little to them, and each has a thread.
MOST_OF_ONE: Final = 500
#: Together no more than what may hold the event loop for a moment.
_MOST_OF_ALL: Final = 1_000


class Company:
    """Batches that came together. They join on the event loop; `share` is safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: list[bytes | None] = []
        self._starts: dict[int, int] = {}
        self._closed = False
        self._found: dict[Hashable, Any] = {}

    def join(self, batch: LogBatch) -> bool:
        """Take `batch` in; False when they are many, or work on the others has begun."""
        with self._lock:
            if self._closed or len(self._values) + len(batch) > _MOST_OF_ALL:
                return False
            self._starts[id(batch)] = len(self._values)
            self._values += batch.values
        batch.company = self
        return True

    def share(
        self, batch: LogBatch, key: Hashable, work: Callable[[list[bytes | None]], T | None]
    ) -> tuple[T, int] | None:
        """What `work` gives for the values of all, and where those of `batch` begin among them.

        It is done once for each `key`. None: the batch is alone, or `work` gives None; then each is
        to be worked on by itself. Raises what `work` raises.
        """
        with self._lock:
            self._closed = True
            if len(self._starts) < 2:
                return None
            if key not in self._found:
                self._found[key] = work(self._values)
            found = self._found[key]
            return None if found is None else (found, self._starts[id(batch)])


class Companies:
    """Brings batches of a fetch together, topic by topic."""

    def __init__(self) -> None:
        self._open: dict[str, Company] = {}

    def add(self, batch: LogBatch) -> None:
        """Put `batch` with the others of its topic, or those after it when they are many.

        One that is large, or has records without a value, stays alone.
        """
        if len(batch) > MOST_OF_ONE or None in batch.values:
            return
        company = self._open.get(batch.topic)
        if company is None or not company.join(batch):
            company = self._open[batch.topic] = Company()
            company.join(batch)
