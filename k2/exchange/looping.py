"""A recorded session that never ends: played again and again, with ids and times that go on.

Every round adds to each trade id, update id and time what a round is long, so that trade ids stay
contiguous from one round to the next and nothing in it was ever sent before. `also` plays the same
market under more symbols, ids of its own per symbol as ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from k2.errors import CaptureError
from k2.exchange.capture import Frame, read_capture, symbols_of
from k2.exchange.feed import CaptureFeed
from k2.exchange.tally import QUOTE, TRADE, id_of, kind_of

_NUMBER: Final = re.compile(rb'"(t|u|T|E)":(\d+)')
_MS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class _Round:
    """What one round adds: to trade ids, update ids, and times (ns)."""

    trade: int
    quote: int
    time_ns: int


class LoopingFeed:
    """Trades and book tickers of the captures, for ever; other channels are left out.

    The captures must be one market's, in order. They are held in memory. Raises `CaptureError`.
    """

    def __init__(self, paths: tuple[Path, ...], also: tuple[str, ...] = ()) -> None:
        self._frames = [
            frame
            for path in CaptureFeed(paths).paths
            for frame in read_capture(path)
            if kind_of(frame.stream) in (TRADE, QUOTE)
        ]
        own = symbols_of(self._frames)
        if len(own) != 1:
            raise CaptureError(
                f"looping needs captures of one symbol, not {', '.join(own) or 'none'}; ids of "
                "several would go on by different steps"
            )
        self._own = own[0]
        self._names = tuple(dict.fromkeys((self._own, *also)))
        self._step = self._measured()

    def _measured(self) -> _Round:
        spans = {}
        for kind in (TRADE, QUOTE):
            found = [id_of(kind, one.data) for one in self._frames if kind_of(one.stream) == kind]
            ids = [ident for ident in found if ident is not None]
            spans[kind] = max(ids) - min(ids) + 1 if ids else 0
        first, last = self._frames[0].recv_ns, self._frames[-1].recv_ns
        length_ms = (last - first) // _MS + 1
        return _Round(spans[TRADE], spans[QUOTE], length_ms * _MS)

    def symbols(self) -> tuple[str, ...]:
        return self._names

    def segments(self) -> Iterator[Iterator[Frame]]:
        yield self._rounds()

    def _rounds(self) -> Iterator[Frame]:
        number = 0
        while True:
            for frame in self._frames:
                moved = self._moved(frame, number)
                for name in self._names:
                    yield self._renamed(moved, name)
            number += 1

    def _moved(self, frame: Frame, number: int) -> Frame:
        if not number:
            return frame
        step = self._step
        shifts = {
            b"t": number * step.trade,
            b"u": number * step.quote,
            b"T": number * step.time_ns // _MS,
            b"E": number * step.time_ns // _MS,
        }
        data = _NUMBER.sub(lambda m: b'"%b":%d' % (m[1], int(m[2]) + shifts[m[1]]), frame.data)
        return Frame(frame.recv_ns + number * step.time_ns, frame.stream, data)

    def _renamed(self, frame: Frame, name: str) -> Frame:
        if name == self._own:
            return frame
        stream = frame.stream.replace(self._own.lower(), name.lower())
        data = frame.data.replace(self._own.encode(), name.encode())
        return Frame(
            frame.recv_ns,
            stream,
            data.replace(self._own.lower().encode(), name.lower().encode()),
        )
