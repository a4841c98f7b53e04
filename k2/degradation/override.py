"""A level set by hand, for a while: it holds against the triggers, and ends by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from k2.degradation.levels import Level
from k2.errors import InvalidParameter

#: A level forgotten by whoever set it must not last for days.
MAX_MINUTES = 24 * 60


@dataclass(frozen=True, slots=True)
class Override:
    """`until_us`: microseconds UTC; `by`: who set it."""

    level: Level
    until_us: int
    reason: str
    by: str

    @classmethod
    def of(cls, level: object, minutes: object, reason: object, by: str, now_us: int) -> Self:
        """As a person asks for it. Raises `InvalidParameter`."""
        names = ", ".join(one.name for one in Level)
        if not isinstance(level, str) or level.upper() not in Level.__members__:
            raise InvalidParameter("level", level, names)
        number = isinstance(minutes, int | float) and not isinstance(minutes, bool)
        if not number or not 0 < float(str(minutes)) <= MAX_MINUTES:
            raise InvalidParameter("minutes", minutes, f"above 0, at most {MAX_MINUTES}")
        if not isinstance(reason, str) or not 0 < len(reason.strip()) <= 500:
            raise InvalidParameter("reason", reason, "why, in 1 to 500 characters")
        until_us = now_us + round(float(str(minutes)) * 60_000_000)
        return cls(Level[level.upper()], until_us, reason.strip(), by)

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> Self:
        """From what the global table holds."""
        return cls(
            Level(entry["level"]), int(entry["until_us"]), str(entry["reason"]), str(entry["by"])
        )

    def entry(self) -> dict[str, Any]:
        """For the control topic and the global table."""
        return {**asdict(self), "level": int(self.level)}

    def facts(self) -> dict[str, Any]:
        """For people: the level by name."""
        return {**self.entry(), "level": self.level.name}
