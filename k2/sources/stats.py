"""What a session did, for metrics, health answers and tests."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class SessionStats:
    """Counters and times of one session; times are wall-clock microseconds UTC, 0 is never.

    `state` is `connecting`, `connected`, `waiting` (between attempts) or `closed`. `reconnects`
    counts by reason: `connect_failed`, `closed_by_peer`, `pong_timeout`, `stale`, `send_failed`,
    `error`, `frame_too_large`, `rotation`.
    """

    state: str = "connecting"
    url: str = ""
    connects: int = 0
    reconnects: Counter[str] = field(default_factory=Counter)
    frames: int = 0
    bytes: int = 0
    too_large: int = 0
    pings: int = 0
    pongs: int = 0
    connected_at_us: int = 0
    last_frame_us: int = 0
    last_pong_us: int = 0
    failures_in_a_row: int = 0
    backoff_s: float = 0.0
    waits_for_room: int = 0
    last_error: str = ""

    @property
    def connected(self) -> bool:
        """True while a connection is open."""
        return self.state == "connected"
