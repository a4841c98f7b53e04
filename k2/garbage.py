"""When Python looks for cycles of objects: rarely by their number, regularly by the clock.

A batch is thousands of objects that die together; looking through them all the time for cycles took
a tenth of the processor. By number alone, though, cycles of the libraries' lie about for minutes.
"""

from __future__ import annotations

import gc
from typing import Final

from k2.clock import Clock

_THRESHOLDS: Final = (200_000, 20, 20)
_EVERY_S: Final = 5.0


def settle() -> None:
    """Leave what is loaded now alone, and count to more before looking."""
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


async def collect(clock: Clock) -> None:
    """Look through what came since the last time, for ever; a millisecond or two."""
    while True:
        await clock.sleep(_EVERY_S)
        gc.collect(1)
