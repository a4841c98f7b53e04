"""What was sent: counts, id ranges and the times of sending."""

from __future__ import annotations

import re
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from k2.exchange.capture import Frame

TRADE, AGGREGATE, QUOTE, OTHER = "trade", "aggTrade", "bookTicker", "other"
_ID_KEYS = {TRADE: b'"t":', AGGREGATE: b'"a":', QUOTE: b'"u":'}
#: Of exchanges whose streams are `channel:symbol`.
_OTHER_KEYS = {TRADE: b'"trade_id":', QUOTE: b'"sequence":'}
_KINDS = {"trade": TRADE, "matches": TRADE, "ticker": QUOTE}
_DIGITS = re.compile(rb"[0-9]+")


@lru_cache(maxsize=16_384)
def kind_of(stream: str) -> str:
    """`trade`, `aggTrade`, `bookTicker` or `other`, by the stream's channel."""
    _, mark, channel = stream.partition("@")
    if not mark:
        return _KINDS.get(stream.partition(":")[0], OTHER)
    return channel if channel in _ID_KEYS else OTHER


def id_of(kind: str, data: bytes) -> int | None:
    """The id of a frame's (first) trade or book ticker; None when it has none."""
    key = _ID_KEYS.get(kind)
    if key is None:
        return None
    start = data.find(key)
    if start < 0:
        key = _OTHER_KEYS.get(kind, key)
        start = data.find(key)
    if start < 0:
        return None
    start += len(key)
    try:
        # Mostly more fields follow; several times a frame, tens of thousands of times a second.
        return int(data[start : data.index(b",", start)])
    except ValueError:
        digits = _DIGITS.match(data, start)
        return int(digits[0]) if digits else None


def ids_of(frames: Iterable[Frame]) -> list[int | None]:
    """`id_of` each frame."""
    return [id_of(kind_of(frame.stream), frame.data) for frame in frames]


class StreamTally:
    """Frames of one stream and the lowest and highest id among them; with `keep_ids` every id."""

    __slots__ = ("count", "first_id", "ids", "kind", "last_id")

    def __init__(self, kind: str, *, keep_ids: bool = False) -> None:
        self.kind = kind
        #: Eight bytes each: there may be tens of millions.
        self.ids: array[int] | None = array("q") if keep_ids else None
        self.count = 0
        self.first_id: int | None = None
        self.last_id: int | None = None

    def add(self, ident: int | None) -> None:
        self.count += 1
        if ident is None:
            return
        if self.ids is not None:
            self.ids.append(ident)
        if self.last_id is None or ident > self.last_id:
            self.last_id = ident
        if self.first_id is None or ident < self.first_id:
            self.first_id = ident


class Tally:
    """Counts per stream, and a bounded ring of (stream, id, wall time of sending in ns)."""

    def __init__(self, ring: int = 0, *, keep_ids: bool = False) -> None:
        self.streams: dict[str, StreamTally] = {}
        self._keep_ids = keep_ids
        self._ring = ring
        self.sends: deque[tuple[str, int, int]] = deque(maxlen=ring)

    def stream(self, name: str) -> StreamTally:
        found = self.streams.get(name)
        if found is None:
            found = StreamTally(kind_of(name), keep_ids=self._keep_ids)
            self.streams[name] = found
        return found

    def add(self, frame: Frame, sent_ns: int) -> None:
        """Count one frame."""
        self.add_all([frame], ids_of([frame]), sent_ns)

    def add_all(self, frames: Sequence[Frame], idents: Sequence[int | None], sent_ns: int) -> None:
        """Count frames; `idents` are their `ids_of`."""
        sends = self.sends if self._ring else None
        for (_, stream, _), ident in zip(frames, idents, strict=True):
            tally = self.streams.get(stream) or self.stream(stream)
            tally.add(ident)
            if ident is not None and sends is not None:
                sends.append((stream, ident, sent_ns))

    def count(self, kind: str | None = None) -> int:
        """Frames of one kind; of all kinds without it."""
        return sum(t.count for t in self.streams.values() if kind in (None, t.kind))

    def sends_of(self, stream: str) -> list[tuple[int, int]]:
        """(id, time of sending in ns) of one stream, oldest first, as far as the ring reaches."""
        return [(ident, sent_ns) for name, ident, sent_ns in self.sends if name == stream]

    def as_json(self) -> dict[str, Any]:
        return {
            name: {
                "kind": tally.kind,
                "count": tally.count,
                "first_id": tally.first_id,
                "last_id": tally.last_id,
            }
            for name, tally in self.streams.items()
        }
