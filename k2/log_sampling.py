"""Repeated errors are told now and then, with their number, instead of each time.

A lake that is away for an hour would else fill the log with one sentence. Of warnings and errors
that say the same about the same thing the first few of a minute are written; the next one after
that carries `suppressed`, the number of those that were not. Nothing below WARNING is touched.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

_PER_WINDOW: Final = 5
_WINDOW_S: Final = 60.0
#: Different things told at once; the ones told longest ago are forgotten.
_MOST_KEYS: Final = 1_000
#: Fields that say what an event is about. Two tables, or two errors, are two things.
_ABOUT: Final = ("table", "topic", "exchange", "session", "error", "worker", "breaker", "reason")


@dataclass(slots=True)
class _Told:
    since_s: float
    written: int = 0
    suppressed: int = 0


class Sampler:
    """Pure: `take` says whether something is written, and what was left out before it."""

    def __init__(self, per_window: int = _PER_WINDOW, window_s: float = _WINDOW_S) -> None:
        self._per_window, self._window_s = per_window, window_s
        self._told: OrderedDict[Hashable, _Told] = OrderedDict()

    def take(self, key: Hashable, now_s: float) -> int | None:
        """None: leave it out; else how many were left out since the last one."""
        told = self._told.setdefault(key, _Told(now_s))
        self._told.move_to_end(key)
        while len(self._told) > _MOST_KEYS:
            self._told.popitem(last=False)
        if now_s - told.since_s >= self._window_s:
            told.since_s, told.written = now_s, 0
        if told.written >= self._per_window:
            told.suppressed += 1
            return None
        told.written += 1
        left_out, told.suppressed = told.suppressed, 0
        return left_out


class Sampling(logging.Filter):
    """A handler's filter over structlog's events and the lines of other libraries alike."""

    def __init__(self, clock_s: Callable[[], float] = monotonic) -> None:
        super().__init__()
        self._sampler = Sampler()
        self._clock_s = clock_s
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        with self._lock:
            left_out = self._sampler.take(_key(record), self._clock_s())
        if left_out:
            _note(record, left_out)
        return left_out is not None


def _key(record: logging.LogRecord) -> Hashable:
    event: Any = record.msg
    if not isinstance(event, dict):
        # The template and not the text: numbers in it would make every line another one.
        return record.name, record.levelno, str(event)
    about = tuple(str(event.get(name)) for name in _ABOUT)
    return record.name, record.levelno, str(event.get("event")), about


def _note(record: logging.LogRecord, left_out: int) -> None:
    if isinstance(record.msg, dict):
        record.msg["suppressed"] = left_out
    else:
        record.msg = f"{record.msg} (and {left_out} like it that were left out)"
