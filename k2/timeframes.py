"""The lengths of candles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

Timeframe = Literal["1m", "5m", "15m", "30m", "1h", "1d"]

#: Timeframe -> microseconds. All divide a day, so windows begin at whole ones UTC.
FRAMES_US: Final[Mapping[str, int]] = {
    "1m": 60_000_000,
    "5m": 300_000_000,
    "15m": 900_000_000,
    "30m": 1_800_000_000,
    "1h": 3_600_000_000,
    "1d": 86_400_000_000,
}
