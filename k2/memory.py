"""What keeps a worker's memory to what it uses: which allocator, and when to look for what is over.

- Cycles of objects. A batch is thousands of objects that die together; looking through them all the
  time took a tenth of the processor. By number alone, though, cycles of the libraries' lie about
  for minutes, so the clock decides.
- Arrow's default allocator (mimalloc) keeps what other threads freed, more with every minute;
  jemalloc gives it back after a second. `ARROW_DEFAULT_MEMORY_POOL` chooses another.
- The C library keeps holes between what is in use until it is asked to give them back.
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
_TRIM_EVERY: Final = 12


def settle() -> None:
    """Leave what is loaded now alone, and count to more before looking."""
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


def choose_allocator() -> None:
    """Have Arrow use jemalloc where it is built with it and nobody chose otherwise."""
    chosen = "ARROW_DEFAULT_MEMORY_POOL" in os.environ
    if not chosen and "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())


async def keep_tidy(clock: Clock) -> None:
    """Collect what came since the last time, and now and then give holes back; for ever."""
    trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None)
    rounds = 0
    while True:
        await clock.sleep(_EVERY_S)
        gc.collect(1)
        rounds += 1
        if trim is not None and not rounds % _TRIM_EVERY:
            await asyncio.to_thread(trim, 0)
