"""Answers kept while the rows they came from are the same: no clock, only what was read.

A question about the past reads data files, which never change, and no hot rows. As long as the
snapshot pinned for it selects the same files, it has the same answer.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from k2.query.bounds import Bounds
from k2.query.cold import ColdSnapshot
from k2.query.seam import Pin

T = TypeVar("T")

#: What the answer to a question within some bounds depends on: the files' paths, in order.
Footprint = tuple[str, ...]


def footprint(pinned: Pin[ColdSnapshot], bounds: Bounds) -> Footprint | None:
    """None: there are hot rows within `bounds`, or rows missing, or a scan of its own is needed."""
    if pinned.partial or pinned.snapshot.metadata_location is not None:
        return None
    if any(True for _ in pinned.hot_chunks(bounds)):
        return None
    return tuple(file.path for file in pinned.snapshot.select(bounds))


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    read: Footprint
    answer: T
    nbytes: int


class KeptAnswers(Generic[T]):
    """Answers by question, the ones asked last, up to `max_bytes`. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Hashable, _Entry[T]] = OrderedDict()
        self._lock = threading.Lock()
        self._held = 0

    @property
    def nbytes(self) -> int:
        return self._held

    def get(self, question: Hashable, read: Footprint) -> T | None:
        """The answer, if it came from exactly `read`."""
        with self._lock:
            entry = self._entries.get(question)
            if entry is None or entry.read != read:
                return None
            self._entries.move_to_end(question)
            return entry.answer

    def clear(self) -> None:
        """Let go of all of them."""
        with self._lock:
            self._entries.clear()
            self._held = 0

    def put(self, question: Hashable, read: Footprint, answer: T, nbytes: int) -> None:
        """Keep `answer`, of `nbytes`; one of more than a tenth of all room is not kept."""
        if nbytes > self._max_bytes // 10:
            return
        with self._lock:
            before = self._entries.pop(question, None)
            self._held += nbytes - (0 if before is None else before.nbytes)
            self._entries[question] = _Entry(read, answer, nbytes)
            while self._held > self._max_bytes:
                self._held -= self._entries.popitem(last=False)[1].nbytes
