"""The batches decoded last: sink, candles and tail read the same records, one decodes for all."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import pyarrow as pa

#: Bytes of rows kept beyond their first use. Whoever reads last is seconds behind at most while the
#: worker keeps up; when it does not, decoding twice is cheaper than the memory.
_MAX_BYTES = 16 * 1024 * 1024
_MAX_ENTRIES = 1_000


@dataclass(slots=True)
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    rows: pa.RecordBatch | None = None
    nbytes: int = 0


class RowCache:
    """Rows by what they were decoded from; safe to use from several threads.

    `max_bytes`: Arrow bytes kept; the oldest go first.
    """

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """Arrow bytes kept now."""
        return self._nbytes

    def rows(self, key: Hashable, decode: Callable[[], pa.RecordBatch]) -> pa.RecordBatch:
        """What `decode` gives for `key`, called once for all who ask while it is kept.

        Raises what `decode` raises, to everyone who asks.
        """
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
        with entry.lock:
            if entry.rows is None:
                entry.rows = decode()
                self._count(key, entry, entry.rows.nbytes)
            return entry.rows

    def _count(self, key: Hashable, entry: _Entry, nbytes: int) -> None:
        with self._lock:
            if self._entries.get(key) is entry:  # not pushed out meanwhile
                entry.nbytes = nbytes
                self._nbytes += nbytes
            while self._nbytes > self._max_bytes or len(self._entries) > _MAX_ENTRIES:
                self._nbytes -= self._entries.popitem(last=False)[1].nbytes
