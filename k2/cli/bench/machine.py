"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
import statistics
import time
from typing import Final

_ADDITIONS: Final = 200_000
_TIMES: Final = 5


def machine() -> str:
    """Processors, architecture and Python of this machine, in words."""
    return f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}"


def additions_ms() -> float:
    """How fast a processor of it is at this moment: ms that a million additions in Python take.

    Shared machines give the same work several times as long within an hour, so a figure says little
    without it.
    """
    return round(statistics.median(_added_s() for _ in range(_TIMES)) * 1e9 / _ADDITIONS, 1)


def _added_s() -> float:
    total, began_s = 0, time.perf_counter()
    for number in range(_ADDITIONS):
        total += number
    return time.perf_counter() - began_s
