"""How fast: as fast as it goes, or at a multiple of the time that passed then."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from k2.clock import Clock
from k2.errors import ConfigError
from k2.replay.records import Record

MAX: Final = "max"
_SPEED: Final = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)x?")
#: Waiting for less costs more than it helps.
_LEAST_S: Final = 0.001


def speed_of(text: str) -> float | None:
    """`10x`, `0.5` or `max` (None). Raises `ConfigError`."""
    if text == MAX:
        return None
    found = _SPEED.fullmatch(text)
    if found is None or not (speed := float(found[1])):
        raise ConfigError(
            f"speed {text!r} is not usable; allowed: a multiple of real time above 0 (10x), or max"
        )
    return speed


@dataclass(slots=True)
class Pace:
    """`speed`: seconds of then per second of now; None: no waiting."""

    speed: float | None
    clock: Clock

    async def keep(self, records: AsyncIterator[Record]) -> AsyncIterator[Record]:
        """The records, each when it is due; one that is late goes at once."""
        first_us: int | None = None
        began_s = self.clock.monotonic_s()
        async for record in records:
            if first_us is None:
                first_us, began_s = record.ts_us, self.clock.monotonic_s()
            if self.speed is not None:
                due_s = began_s + (record.ts_us - first_us) / 1e6 / self.speed
                left_s = due_s - self.clock.monotonic_s()
                if left_s > _LEAST_S:
                    await self.clock.sleep(left_s)
            yield record
