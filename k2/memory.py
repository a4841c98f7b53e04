"""What keeps a worker's memory to what it uses: which allocator, and when to look for what is over.

- Cycles of objects. A batch is thousands of objects that die together; looking through them all the
  time took a tenth of the processor. By number alone, though, cycles of the libraries' lie about
  for minutes, so the clock decides.
- Arrow's default allocator (mimalloc) keeps what other threads freed, more with every minute;
  jemalloc gives it back after a second. `ARROW_DEFAULT_MEMORY_POOL` chooses another.
- The C library keeps holes between what is in use until it is asked to give them back, and gives
  each thread a heap of its own, of which each has holes for itself.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
from typing import Any, Final

import pyarrow as pa

from k2.clock import Clock

_THRESHOLDS: Final = (200_000, 20, 20)
_EVERY_S: Final = 5.0
#: Every so often also what outlived a look; the first time that takes 60 ms.
_WHOLE_EVERY: Final = 12
#: `mallopt`'s number for how many heaps there may be, and how many there are to be.
_ARENA_MAX: Final = -8
_HEAPS: Final = 2


def settle() -> None:
    """Leave what is loaded now alone, and count to more before looking."""
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


def choose_allocator() -> None:
    """Have Arrow use jemalloc where it is built with it and nobody chose otherwise, and the C
    library few heaps; before there are threads."""
    limit: Any = getattr(ctypes.CDLL(None), "mallopt", None)
    if limit is not None and "MALLOC_ARENA_MAX" not in os.environ:
        limit(_ARENA_MAX, _HEAPS)
    chosen = "ARROW_DEFAULT_MEMORY_POOL" in os.environ
    if not chosen and "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())


async def keep_tidy(clock: Clock) -> None:
    """Collect what came since the last time, and now and then give holes back; for ever."""
    trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None)
    rounds = 0
    while True:
        await clock.sleep(_EVERY_S)
        rounds += 1
        whole = not rounds % _WHOLE_EVERY
        # What outlives a look is looked at no more by these: without a whole one it would stay.
        gc.collect(2 if whole else 1)
        if rounds == _WHOLE_EVERY:
            # What a warm worker has it keeps: the next whole looks take a few milliseconds.
            gc.freeze()
        if whole and trim is not None:
            await asyncio.to_thread(trim, 0)
