"""Three times what a worker can take, for as long as asked: does it stay up, and is all of it kept?

First the rate a worker sustains is measured: a burst as fast as it takes, over the time until all
of it is stored. Then a worker with degradation is offered a multiple of that, a fifth of it of tier
1: what may not be put off has to fit. What its socket does not take is not sent, so every id that
was sent can be counted against the lake; how much it took is told.
"""

from __future__ import annotations

import asyncio
import json as jsonlib
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from k2.cli.bench.machine import machine
from k2.cli.demo.rehearsal import Rehearsal
from k2.degradation.levels import Level
from k2.errors import K2Error

_FULL: Final = 150_000.0
_CALM: Final = 100.0
_LOOK_S: Final = 0.25
_WARM_S: Final = 3.0
_DRAIN_S: Final = 1_800.0
#: Share of the overload after which the level counts as settled.
_SETTLED: Final = 0.2
_LIMIT_MS: Final = 2_000.0
#: Triggers in seconds of sustained work: lag is latency, and 2 s are promised.
_TRIGGERS_S: Final = {"SOFT": 0.25, "GRACEFUL": 0.5, "AGGRESSIVE": 0.8, "BREAK": 5.0}
_QUEUED_S: Final = 0.3
_LEAST_QUEUED: Final = 1_000
#: The busiest first: two of tier 3 (66 % of the records), one of tier 2 (15 %), two of tier 1.
_SYMBOLS: Final = ("WINUSDT", "ANKRUSDT", "ZECUSDT", "BTCUSDT", "ETHUSDT")
_TIER_1: Final = "BTCUSDT"
_LATEST: Final = f"/v1/trades?symbol={_TIER_1}&fields=trade_id,receive_timestamp&limit=1"


@dataclass(frozen=True, slots=True)
class Result:
    """`tier1_…_ms`: age (since it was received) of the newest tier 1 trade in an answer, once the
    level had settled; `refused`: answers 503 meanwhile, as CIRCUIT_BREAK promises.

    `levels_s`: seconds spent at each level. `shed`: records put off, by tier. `rss_mb`: the highest
    in each fifth of the overload. `stored_after_s`: from its end until all was stored.
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
    memory_limit_mb: int
    rss_mb: list[float]
    rss_after_mb: float
    peak_lag: int
    stored_after_s: float
    counts: dict[str, dict[str, int]]
    machine: str


@dataclass(slots=True)
class _Seen:
    """What was noticed during the overload; `ages_ms` and `refused` once it had settled."""

    ages_ms: list[float] = field(default_factory=list)
    levels: Counter[str] = field(default_factory=Counter)
    rss_mb: list[float] = field(default_factory=list)
    peak_lag: int = 0
    refused: int = 0


async def sustained(seconds: float) -> float:
    """Records a second that one worker takes, judges, stores and shows."""
    with tempfile.TemporaryDirectory(prefix="k2-overload-") as name:
        environment = {"K2_DEGRADATION_EXEMPT": "true"}
        async with Rehearsal(Path(name), environment, _CALM, _SYMBOLS) as k2:
            await asyncio.sleep(_WARM_S)
            before, began_s = k2.server.sent.count(), time.monotonic()
            k2.tide.rate = _FULL
            await asyncio.sleep(seconds)
            await k2.stored()
            return (k2.server.sent.count() - before) / (time.monotonic() - began_s)


async def overloaded(seconds: float, times: float, rate: float, memory_mb: int) -> Result:
    """Offer `times` the sustained `rate` for `seconds`, calm down, and count."""
    environment = {
        **_triggers(rate),
        "K2_DEGRADATION_MEMORY_LIMIT_MB": str(memory_mb),
        # Frames that wait between socket and log are latency as well.
        "K2_BINANCE_QUEUE_FRAMES": str(max(_LEAST_QUEUED, int(rate * _QUEUED_S))),
    }
    with tempfile.TemporaryDirectory(prefix="k2-overload-") as name:
        async with Rehearsal(Path(name), environment, _CALM, _SYMBOLS) as k2:
            await asyncio.sleep(_WARM_S)
            frames = (await k2.status())["source"]["frames"]
            k2.tide.rate = times * rate
            seen = await _watch(k2, seconds)
            taken = (await k2.status())["source"]["frames"] - frames
            k2.tide.rate = _CALM
            ended_s = time.monotonic()
            rss_after_mb = await _caught_up(k2)
            stored_after_s = time.monotonic() - ended_s
            shed = await k2.shed()
            await k2.finish()
        counts = await asyncio.to_thread(k2.counts)
    looks = seen.levels.total()
    return Result(
        seconds=seconds,
        sustained_per_s=round(rate),
        offered_per_s=round(times * rate),
        taken_per_s=round(taken / seconds),
        levels_s={level: round(seconds * n / looks, 1) for level, n in seen.levels.items()},
        shed=shed,
        tier1_p50_ms=_percentile(seen.ages_ms, 50),
        tier1_p99_ms=_percentile(seen.ages_ms, 99),
        answers=len(seen.ages_ms),
        refused=seen.refused,
        memory_limit_mb=memory_mb,
        rss_mb=[float(part.max()) for part in np.array_split(seen.rss_mb, 5) if len(part)],
        rss_after_mb=rss_after_mb,
        peak_lag=seen.peak_lag,
        stored_after_s=round(stored_after_s, 1),
        counts={kind: asdict(count) for kind, count in counts.items()},
        machine=machine(),
    )


def _triggers(rate: float) -> dict[str, str]:
    return {
        **{f"K2_DEGRADATION_LAG_{n}": str(max(1, int(rate * s))) for n, s in _TRIGGERS_S.items()},
        "K2_DEGRADATION_EXEMPT": "false",
        "K2_DEGRADATION_COOLDOWN_S": "5",
        "K2_DEGRADATION_INTERVAL_S": "0.25",
    }


async def _watch(k2: Rehearsal, seconds: float) -> _Seen:
    seen, began_s = _Seen(), time.monotonic()
    while (at_s := time.monotonic() - began_s) < seconds:
        status = await k2.status()
        seen.levels[Level(status["level"]).name] += 1
        seen.rss_mb.append(status["memory"]["rss_mb"])
        seen.peak_lag = max(seen.peak_lag, status["lag"])
        reply, age_ms = await k2.age_ms(_LATEST)
        if at_s >= seconds * _SETTLED:
            seen.refused += reply == 503
            if age_ms is not None:
                seen.ages_ms.append(age_ms)
        await asyncio.sleep(_LOOK_S)
    return seen


async def _caught_up(k2: Rehearsal) -> float:
    """Wait until nothing is put off any more; the most memory (MB) that took."""
    until_s, peak = time.monotonic() + _DRAIN_S, 0.0
    while time.monotonic() < until_s:
        status = await k2.status()
        peak = max(peak, float(status["memory"]["rss_mb"]))
        if status["level"] <= Level.SOFT and not status["validate"]["shed_pending"]:
            return peak
        await asyncio.sleep(_LOOK_S)
    raise K2Error(f"not all was stored {_DRAIN_S:.0f} s after the overload: {status['validate']}")


def _percentile(values: Sequence[float], share: float) -> float | None:
    return round(float(np.percentile(values, share)), 1) if values else None


def broken(result: Result) -> list[str]:
    """Which of the promises were not kept; empty when all of them were."""
    found = [
        f"{kind}: " + ", ".join(f"{n:,} {name}" for name, n in count.items())
        for kind, count in result.counts.items()
        if count["missing"] or count["doubled"] or count["unknown"]
    ]
    peak = max(*result.rss_mb, result.rss_after_mb)
    if peak > result.memory_limit_mb:
        found.append(f"memory reached {peak:,.0f} MB of {result.memory_limit_mb:,} MB")
    if result.tier1_p99_ms is None:
        found.append("tier 1 was never answered once the level had settled")
    elif result.tier1_p99_ms >= _LIMIT_MS:
        found.append(f"tier 1 p99 is {result.tier1_p99_ms:,.0f} ms; allowed: {_LIMIT_MS:,.0f} ms")
    return found


@click.command(short_help="Several times the sustainable rate: up, in time, and nothing lost?")
@click.option("--seconds", default=600.0, show_default=True, help="How long to overload.")
@click.option("--times", default=3.0, show_default=True, help="The sustained rate times this.")
@click.option("--measure-s", default=15.0, show_default=True, help="Burst to measure that rate by.")
@click.option("--memory-mb", default=2_048, show_default=True, help="The worker's memory limit.")
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object.")
def overload(seconds: float, times: float, measure_s: float, memory_mb: int, as_json: bool) -> None:
    """Overload one worker on one processor, and count what became of every id.

    The rate it sustains is measured first. Ends with status 1 when a record is missing or doubled,
    when memory passed its limit, or when tier 1 was older than 2 s (p99) once the level had settled
    (after a fifth of the time).
    """
    rate = asyncio.run(sustained(measure_s))
    if not as_json:
        click.echo(f"sustained: {rate:,.0f} records/s; offering {times * rate:,.0f}/s …")
    result = asyncio.run(overloaded(seconds, times, rate, memory_mb))
    found: dict[str, Any] = asdict(result)
    if as_json:
        click.echo(jsonlib.dumps(found))
    else:
        for name, value in found.items():
            click.echo(f"{name:>16}: {value}")
    if failed := broken(result):
        raise K2Error("; ".join(failed))
