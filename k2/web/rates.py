"""Token buckets: how often a key may ask."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

#: A bucket holds what a key may ask within so many seconds, so that short bursts pass.
_BURST_S = 10.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reset_s`: whole seconds until the bucket is full; `retry_s`: until the next token."""

    allowed: bool
    limit: int
    remaining: int
    reset_s: int
    retry_s: int

    def headers(self) -> dict[str, str]:
        """RateLimit headers of the IETF draft."""
        return {
            "RateLimit-Limit": str(self.limit),
            "RateLimit-Remaining": str(self.remaining),
            "RateLimit-Reset": str(self.reset_s),
        }


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_s: float


class Rates:
    """One bucket per name; as many as there are keys, so they need no end."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._monotonic_s = monotonic_s
        self._buckets: dict[str, _Bucket] = {}

    def take(self, name: str, per_minute: int) -> Verdict:
        """Take one token of `name`, if there is one."""
        per_s = per_minute / 60.0
        size = max(1.0, per_s * _BURST_S)
        now_s = self._monotonic_s()
        bucket = self._buckets.setdefault(name, _Bucket(size, now_s))
        bucket.tokens = min(size, bucket.tokens + (now_s - bucket.at_s) * per_s)
        bucket.at_s = now_s
        allowed = bucket.tokens >= 1.0
        if allowed:
            bucket.tokens -= 1.0
        return Verdict(
            allowed,
            per_minute,
            int(bucket.tokens),
            math.ceil((size - bucket.tokens) / per_s),
            max(1, math.ceil((1.0 - bucket.tokens) / per_s)),
        )
