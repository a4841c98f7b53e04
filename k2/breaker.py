"""A circuit breaker's decisions: when a service that keeps failing is left alone, and for how long.

CLOSED lets every call through; failures in a row open it. OPEN lets none through until its time is
over. HALF_OPEN lets one call through at a time: successes in a row close it, one failure opens it
again (CBR-01). It always ends: whatever happened, enough good answers close it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class State(IntEnum):
    """As the metric has it (CBR-02)."""

    CLOSED = 0
    OPEN = 1
    HALF_OPEN = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """`failures` in a row open it for `open_s` seconds, then `successes` in a row close it."""

    failures: int = 5
    successes: int = 2
    open_s: float = 60.0


class Circuit:
    """The state; every method is told the time, seconds on a clock that never goes back."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._state = State.CLOSED
        self._in_a_row = 0
        self._opened_s = 0.0
        self._probe_s: float | None = None

    def state(self, now_s: float) -> State:
        """An open circuit becomes half-open by itself when its time is over."""
        if self._state is State.OPEN and now_s - self._opened_s >= self._limits.open_s:
            self._move(State.HALF_OPEN)
        return self._state

    def wait_s(self, now_s: float) -> float:
        """Seconds until a call may be let through; 0.0: one would be, now."""
        match self.state(now_s):
            case State.CLOSED:
                return 0.0
            case State.OPEN:
                return self._limits.open_s - (now_s - self._opened_s)
        if self._probe_s is None:
            return 0.0
        # A caller that never told its outcome must not keep the others out for ever.
        return max(0.0, self._limits.open_s - (now_s - self._probe_s))

    def enter(self, now_s: float) -> bool:
        """True when a call may go; its outcome is then told."""
        if self.wait_s(now_s) > 0:
            return False
        if self._state is State.HALF_OPEN:
            self._probe_s = now_s
        return True

    def succeeded(self, now_s: float) -> None:
        """A call was answered. One that was not asked for counts too, also while it is open."""
        if self.state(now_s) is State.OPEN:
            self._move(State.HALF_OPEN)
        self._probe_s = None
        if self._state is State.CLOSED:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if self._in_a_row >= self._limits.successes:
            self._move(State.CLOSED)

    def failed(self, now_s: float) -> None:
        """A call got no answer, or a broken one."""
        state = self.state(now_s)
        if state is State.OPEN:
            # Calls that began before: their time is not added, or it would never be over.
            return
        self._in_a_row += 1
        if state is State.HALF_OPEN or self._in_a_row >= self._limits.failures:
            self._move(State.OPEN)
            self._opened_s = now_s

    def dropped(self, now_s: float) -> None:
        """A call ended without telling anything about the service."""
        if self.state(now_s) is State.HALF_OPEN:
            self._probe_s = None

    def _move(self, state: State) -> None:
        self._state, self._in_a_row, self._probe_s = state, 0, None
