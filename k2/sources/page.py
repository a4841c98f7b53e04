"""What is asked of a history, and what it gives."""

from __future__ import annotations

from typing import Final, NamedTuple

#: Most trades of one answer, with all exchanges here.
PAGE: Final = 1_000


class Wanted(NamedTuple):
    """Trades `first` to `last` of a symbol, which is the exchange's own name.

    `since_ns`: a time before the first of them, nanoseconds UTC; only for histories by time.
    """

    symbol: str
    first: int
    last: int
    since_ns: int = 0


class HistoryFrame(NamedTuple):
    """A trade's id, the frame it came in, and (of histories by time) when it was, nanoseconds."""

    ident: int
    frame: bytes
    time_ns: int = 0
