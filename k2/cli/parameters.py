"""Values of options that several commands take."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Any, Final

import click

_UNIT_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def seconds_of(text: str) -> int | None:
    """The seconds of 30s, 10m, 2h or 3d; None of anything else."""
    found = re.fullmatch(r"(\d+)([smhd])", text, re.ASCII)
    return int(found[1]) * _UNIT_S[found[2]] if found else None


def names_of(text: str | None) -> list[str]:
    """The names of `BTCUSDT, ETHUSDT`, each once, as written."""
    return list(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))


class Duration(click.ParamType):
    """30s, 10m, 2h or 3d; seconds."""

    name = "DURATION"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        """Seconds."""
        found = seconds_of(str(value))
        if found is None:
            self.fail(f"{value!r} is no duration; give 30s, 10m, 2h or 3d")
        return found


class Moment(click.ParamType):
    """An ISO time (UTC without a zone), or an age like 15m, 2h, 3d; microseconds."""

    name = "TIME"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        """Microseconds since 1970."""
        age_s = seconds_of(str(value))
        if age_s is not None:
            return int((time.time() - age_s) * 1_000_000)
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is no time; give 2026-01-31T12:00:00 or an age like 2h")
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return int(moment.timestamp() * 1_000_000)
