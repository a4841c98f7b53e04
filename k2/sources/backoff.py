"""How long to wait before the next attempt."""

from __future__ import annotations

import random


class Backoff:
    """Exponential with full jitter: uniform between 0 and min(cap, initial * 2^failures).

    Full jitter spreads the clients of one outage best (AWS Architecture Blog, "Exponential
    Backoff And Jitter").
    """

    def __init__(self, initial_s: float, cap_s: float, rng: random.Random) -> None:
        self._initial_s = initial_s
        self._cap_s = cap_s
        self._rng = rng
        self.failures = 0

    def next_s(self) -> float:
        """Seconds to wait after one more failure."""
        # 2**1024 overflows a float; no cap in use is beyond 2**64 times the first delay.
        ceiling_s = min(self._cap_s, self._initial_s * 2.0 ** min(self.failures, 64))
        self.failures += 1
        return self._rng.uniform(0.0, ceiling_s)

    def reset(self) -> None:
        """Begin anew: the other side does what it should."""
        self.failures = 0
