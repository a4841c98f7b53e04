"""How late the event loop is: a timer that notes when it fires.

What holds the loop delays everything on it, answers and ingestion alike; a query that ran there
would show here at once.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from k2 import metrics
from k2.clock import Clock

_EVERY_S: Final = 0.025
#: The gauge is the worst of so long, so that a scrape does not miss what came between two.
_WINDOW_S: Final = 15.0


class LoopWatch:
    """`worst_s`: the greatest lateness of the last 15 s."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        #: (when, lateness), the lateness falling: only what may yet be the worst.
        self._late: deque[tuple[float, float]] = deque()

    async def run(self) -> None:
        """Watch for ever."""
        while True:
            due_s = self._clock.monotonic_s() + _EVERY_S
            await self._clock.sleep(_EVERY_S)
            now_s = self._clock.monotonic_s()
            self.note(now_s, max(0.0, now_s - due_s))

    def note(self, now_s: float, late_s: float) -> None:
        """Take one lateness."""
        metrics.LOOP_DELAY.observe(late_s)
        while self._late and self._late[-1][1] <= late_s:
            self._late.pop()
        self._late.append((now_s, late_s))
        while self._late[0][0] < now_s - _WINDOW_S:
            self._late.popleft()
        metrics.LOOP_LAG.set(self.worst_s)

    @property
    def worst_s(self) -> float:
        return self._late[0][1] if self._late else 0.0
