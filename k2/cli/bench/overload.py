"""Three times what a worker can take, for as long as asked: does it stay up, and is all of it kept?

First the rate a worker sustains is measured, by pouring as fast as it takes. Then a worker with
degradation is offered a multiple of it. What its socket does not take waits at the exchange, so
every id that was sent can be counted against the lake; how much it took is told.
"""

from __future__ import annotations

import asyncio
import json as jsonlib
import os
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from k2.cli.demo.rehearsal import Rehearsal
from k2.degradation.levels import Level
from k2.errors import K2Error

_FULL: Final = 150_000.0
_CALM: Final = 100.0
_LOOK_S: Final = 0.25
_DRAIN_S: Final = 900.0
#: Share of the overload after which the level counts as settled.
_SETTLED: Final = 0.2
_TIER_1: Final = "BTCUSDT"
_LATEST: Final = f"/v1/trades?symbol={_TIER_1}&fields=trade_id,receive_timestamp&limit=1"


@dataclass(frozen=True, slots=True)
class Result:
    """`tier1_ms`: age of the newest tier 1 trade in an answer, once the level had settled.

    `refused`: answers 503 meanwhile, as CIRCUIT_BREAK promises. `counts`: sent against stored.
    """

    seconds: float
    sustained_per_s: int
    offered_per_s: int
    taken_per_s: int
    levels_s: dict[str, float]
    shed: dict[str, int]
    tier1_p50_ms: float | None
    tier1_p99_ms: float | None
    answers: int
    refused: int
    peak_rss_mb: float
    last_fifth_rss_mb: float
    peak_lag: int
    stored_after_s: float
    counts: dict[str, dict[str, int]]
    machine: str


@dataclass(slots=True)
class _Seen:
    """What was noticed during the overload."""

    ages_ms: list[float]
    levels: Counter[str]
    rss: list[float]
    peak_lag: int = 0
    refused: int = 0


async def sustained(seconds: float) -> float:
    """Records a second that one worker judges, stores and shows, poured as fast as it takes."""
    with tempfile.TemporaryDirectory(prefix="k2-overload-") as name:
        environment = {"K2_DEGRADATION_EXEMPT": "true"}
        async with Rehearsal(Path(name), environment, _CALM) as k2:
            k2.tide.rate = _FULL
            await asyncio.sleep(seconds / 4)  # caches fill, the socket's buffers too
            began_s, before = time.monotonic(), (await k2.status())["sink"]["rows"]
            await asyncio.sleep(seconds)
            rows = (await k2.status())["sink"]["rows"] - before
            rate = rows / (time.monotonic() - began_s)
    if rate <= 0:
        raise K2Error("no row was stored while the sustained rate was measured; give it longer")
    return float(rate)


async def overloaded(seconds: float, times: float, sustained_per_s: float) -> Result:
    """Offer `times` the sustained rate for `seconds`, calm down, and count."""
    offered = times * sustained_per_s
    with tempfile.TemporaryDirectory(prefix="k2-overload-") as name:
        async with Rehearsal(Path(name), _environment(sustained_per_s), _CALM) as k2:
            await asyncio.sleep(2)
            frames = (await k2.status())["source"]["frames"]
            k2.tide.rate = offered
            seen = await _watch(k2, seconds)
            taken = (await k2.status())["source"]["frames"] - frames
            k2.tide.rate = _CALM
            ended_s = time.monotonic()
            await _caught_up(k2)
            stored_after_s = time.monotonic() - ended_s
            shed = await k2.shed()
            await k2.finish()
        counts = await asyncio.to_thread(k2.counts)
    settled = seen.ages_ms
    total = sum(seen.levels.values())
    return Result(
        seconds,
        round(sustained_per_s),
        round(offered),
        round(taken / seconds),
        {level: round(seconds * n / total, 1) for level, n in seen.levels.items()},
        shed,
        _percentile(settled, 50),
        _percentile(settled, 99),
        len(settled),
        seen.refused,
        max(seen.rss),
        max(seen.rss[-max(1, len(seen.rss) // 5) :]),
        seen.peak_lag,
        round(stored_after_s, 1),
        {kind: asdict(count) for kind, count in counts.items()},
        f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}",
    )


def _environment(sustained_per_s: float) -> dict[str, str]:
    """Triggers in seconds of work, as production's are for a worker of 100,000 records a second."""
    seconds = {"SOFT": 0.25, "GRACEFUL": 0.5, "AGGRESSIVE": 1.0, "BREAK": 5.0}
    return {
        **{
            f"K2_DEGRADATION_LAG_{name}": str(max(1, int(sustained_per_s * s)))
            for name, s in seconds.items()
        },
        "K2_DEGRADATION_EXEMPT": "false",
        "K2_DEGRADATION_COOLDOWN_S": "5",
        "K2_DEGRADATION_INTERVAL_S": "0.25",
    }


async def _watch(k2: Rehearsal, seconds: float) -> _Seen:
    seen = _Seen([], Counter(), [])
    began_s = time.monotonic()
    while (at_s := time.monotonic() - began_s) < seconds:
        status = await k2.status()
        seen.levels[Level(status["level"]).name] += 1
        seen.rss.append(status["memory"]["rss_mb"])
        seen.peak_lag = max(seen.peak_lag, status["lag"])
        reply, age_ms = await k2.age_ms(_LATEST)
        if at_s >= seconds * _SETTLED:
            seen.refused += reply == 503
            if age_ms is not None:
                seen.ages_ms.append(age_ms)
        await asyncio.sleep(_LOOK_S)
    return seen


async def _caught_up(k2: Rehearsal) -> None:
    until_s = time.monotonic() + _DRAIN_S
    while time.monotonic() < until_s:
        status = await k2.status()
        if status["level"] == Level.NORMAL and not status["validate"]["shed_pending"]:
            return
        await asyncio.sleep(_LOOK_S)
    raise K2Error(f"not all was stored {_DRAIN_S:.0f} s after the overload: {status['validate']}")


def _percentile(values: Sequence[float], share: float) -> float | None:
    return round(float(np.percentile(values, share)), 1) if values else None


def verdict(result: Result, limit_ms: float = 2_000.0) -> list[str]:
    """What the promise was and is not kept; empty when all of it is."""
    broken = [
        f"{kind}: " + ", ".join(f"{n:,} {name}" for name, n in count.items())
        for kind, count in result.counts.items()
        if count["missing"] or count["doubled"] or count["unknown"]
    ]
    if result.tier1_p99_ms is not None and result.tier1_p99_ms >= limit_ms:
        broken.append(f"tier 1 p99 is {result.tier1_p99_ms:.0f} ms")
    return broken


@click.command(short_help="Several times the sustainable rate: up, in time, and nothing lost?")
@click.option("--seconds", default=600.0, show_default=True, help="How long to overload.")
@click.option("--times", default=3.0, show_default=True, help="The sustained rate times this.")
@click.option("--measure-s", default=15.0, show_default=True, help="To measure that rate.")
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object.")
def overload(seconds: float, times: float, measure_s: float, as_json: bool) -> None:
    """Overload one worker on one processor, and count what became of every id.

    The rate it sustains is measured first. Ends with status 1 when a record is missing or doubled,
    or when tier 1 was older than 2 s (p99) once the level had settled.
    """
    rate = asyncio.run(sustained(measure_s))
    if not as_json:
        click.echo(f"sustained: {rate:,.0f} records/s; offering {times * rate:,.0f}/s …")
    result = asyncio.run(overloaded(seconds, times, rate))
    found: dict[str, Any] = asdict(result)
    if as_json:
        click.echo(jsonlib.dumps(found))
    else:
        for name, value in found.items():
            click.echo(f"{name:>18}: {value}")
    if broken := verdict(result):
        click.echo("; ".join(broken), err=True)
        raise SystemExit(1)
