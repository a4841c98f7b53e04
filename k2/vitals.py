"""How the process itself is: memory, a leak in the making, disk, health; as gauges."""

from __future__ import annotations

import asyncio
import shutil
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import psutil
import structlog

from k2 import metrics
from k2.clock import Clock
from k2.degradation.memory import MemoryGauge
from k2.web.context import Check

log = structlog.get_logger(__name__)

_EVERY_S: Final = 5.0
#: Leak watch (ING-10): a sample every 30 s, an hour of them, a verdict from 10 on.
_LEAK_EVERY_S: Final = 30.0
_LEAK_SAMPLES: Final = 120
_LEAK_MIN_SAMPLES: Final = 10
_LEAK_BYTES_PER_S: Final = 50 * 2**20 / 3600
_LEAK_WARN: Final = 0.8
_STATES: Final = {"healthy": 1.0, "degraded": 0.5, "unhealthy": 0.0}


class LeakWatch:
    """Tells steady growth of memory from its ups and downs."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=_LEAK_SAMPLES)

    def add(self, at_s: float, rss_bytes: float) -> None:
        """Take a sample."""
        self._samples.append((at_s, rss_bytes))

    def score(self) -> float:
        """Slope of the line through the samples (50 MB/h is 1) times its R²; 0 to 1."""
        if len(self._samples) < _LEAK_MIN_SAMPLES:
            return 0.0
        at_s, rss = np.array(self._samples, dtype=float).T
        at_s, rss = at_s - at_s.mean(), rss - rss.mean()
        spread = float(rss @ rss)
        if spread == 0.0:
            return 0.0
        together = float(at_s @ rss)
        slope = together / float(at_s @ at_s)
        fit = slope * together / spread
        return min(1.0, max(0.0, slope / _LEAK_BYTES_PER_S) * fit)


class Vitals:
    """Samples one process every few seconds."""

    def __init__(
        self,
        data_dir: Path,
        memory: MemoryGauge,
        ready: Callable[[], bool],
        checks: Callable[[], Sequence[Check]],
        clock: Clock,
    ) -> None:
        self._data_dir = data_dir
        self._ready = ready
        self._checks = checks
        self._clock = clock
        self._process = psutil.Process()
        self._leak = LeakWatch()
        self._leak_due_s = 0.0
        self._warned = False
        metrics.MEMORY_LIMIT.set(memory.limit_bytes)

    async def run(self) -> None:
        """Sample for ever."""
        while True:
            # A full or remote disk answers slowly.
            usage = await asyncio.to_thread(shutil.disk_usage, self._data_dir)
            metrics.DISK_FREE.set(usage.free)
            metrics.DISK_TOTAL.set(usage.total)
            self.sample()
            await self._clock.sleep(_EVERY_S)

    def sample(self) -> None:
        """Look once at everything that needs no waiting."""
        metrics.READY.set(self._ready())
        memory = self._process.memory_info()
        metrics.MEMORY_RSS.set(memory.rss)
        metrics.MEMORY_VMS.set(memory.vms)
        for check in self._checks():
            metrics.HEALTH.labels(check.name).set(_STATES[check.status])
        now_s = self._clock.monotonic_s()
        if now_s >= self._leak_due_s:
            self._leak_due_s = now_s + _LEAK_EVERY_S
            self._watch(now_s, memory.rss)

    def _watch(self, now_s: float, rss_bytes: int) -> None:
        self._leak.add(now_s, rss_bytes)
        score = self._leak.score()
        metrics.LEAK_SCORE.set(score)
        if score > _LEAK_WARN and not self._warned:
            log.warning("memory_grows_steadily", score=round(score, 2), rss_bytes=rss_bytes)
        self._warned = score > _LEAK_WARN
