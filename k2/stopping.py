"""Stopping in bounded time: a part that hangs or fails keeps neither the others nor the process.

Nothing is lost by giving up: what is not in the lake is still in the log, and the next worker reads
it from the vector.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import structlog

from k2.errors import K2Error

log = structlog.get_logger(__name__)

#: Seconds a stop may take to bring what was received into log and lake.
DRAIN_S: Final = 5.0
#: Seconds partitions that leave may hold up a rebalance. Above it members are thrown out of the
#: group when they are slow, and every worker waits meanwhile.
HANDOVER_S: Final = 5.0
#: Seconds for the log to take what was handed to it, and for each part to close.
FLUSH_S: Final = 3.0
CLOSE_S: Final = 3.0
#: Seconds after which a stop that still hangs is ended; below Kubernetes' 30.
OVERDUE_S: Final = 25.0

_OVERDUE_STATUS: Final = 1

Part = tuple[str, Callable[[], Awaitable[object]]]


async def close_all(parts: Iterable[Part], limit_s: float = CLOSE_S) -> None:
    """Close each part in turn; one that fails, or takes longer than `limit_s`, is logged."""
    for name, close in parts:
        try:
            async with asyncio.timeout(limit_s):
                await close()
        except TimeoutError:
            log.warning("part_not_closed", part=name, error=f"not within {limit_s:.0f} s")
        except K2Error as exc:
            log.warning("part_not_closed", part=name, error=exc.message)
        except Exception as exc:
            log.exception("part_not_closed", part=name, error=str(exc))


def end_overdue(limit_s: float = OVERDUE_S, leave: Callable[[int], object] = os._exit) -> None:
    """End the process if it is still there after `limit_s`, naming the threads it waited for."""

    def end() -> None:
        threads = [thread.name for thread in threading.enumerate() if not thread.daemon]
        log.error("stop_overdue", after_s=limit_s, threads=threads)
        sys.stderr.flush()
        leave(_OVERDUE_STATUS)

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()
