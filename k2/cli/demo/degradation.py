"""`k2 demo degradation`: through all five levels by load, and back, with nothing lost."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from k2.cli.demo.enter import Enter
from k2.cli.demo.ladder import View, proof, table
from k2.cli.demo.rehearsal import Rehearsal, Reply
from k2.degradation.levels import Level
from k2.errors import K2Error

_CALM: Final = 200.0
_FIRST: Final = 2_000.0
_STEEPEST: Final = 80_000.0
_LOOK_S: Final = 0.5
_CLIMB_S: Final = 90.0
_CALMED_S: Final = 240.0


class NotDegraded(K2Error):
    """The walk did not come to its end."""

    code = "not_degraded"


@dataclass(frozen=True, slots=True)
class Pace:
    """`lags`: triggers of SOFT to CIRCUIT_BREAK; `stay_s`: how long each level is looked at."""

    lags: tuple[int, int, int, int]
    cooldown_s: float
    stay_s: float

    def trigger(self, level: Level) -> int:
        return self.lags[level - 1]

    def environment(self) -> dict[str, str]:
        """The walk's settings: K2's own triggers, lowered; the rest is as it always is."""
        names = ("SOFT", "GRACEFUL", "AGGRESSIVE", "BREAK")
        return {
            **{
                f"K2_DEGRADATION_LAG_{name}": str(lag)
                for name, lag in zip(names, self.lags, strict=True)
            },
            "K2_DEGRADATION_EXEMPT": "false",
            "K2_DEGRADATION_COOLDOWN_S": str(self.cooldown_s),
            "K2_DEGRADATION_INTERVAL_S": "0.25",
            "K2_SINK_INTERVAL_S": "1",
            # Else AGGRESSIVE is the last level that load can bring about here.
            "K2_DEGRADATION_SOURCE_YIELDS": "false",
            # A full queue counts as lag: it must not take the walk up several levels at once.
            "K2_BINANCE_QUEUE_FRAMES": "1000",
        }


QUICK: Final = Pace((1_000, 4_000, 10_000, 20_000), 2.0, 2.0)
WHOLE: Final = Pace((3_000, 15_000, 50_000, 120_000), 5.0, 8.0)


class Walk:
    """One walk up and down."""

    def __init__(self, rehearsal: Rehearsal, pace: Pace, view: View, enter: Enter) -> None:
        self._k2 = rehearsal
        self._pace = pace
        self._enter = enter
        self._view = view
        self._began_us = self._told_us = time.time_ns() // 1_000
        self.seen = {Level.NORMAL}

    async def run(self) -> None:
        """Up to CIRCUIT_BREAK and back to NORMAL. Raises `NotDegraded`."""
        self._view.say(f"The market is calm: {_CALM:,.0f} messages a second.")
        await self._stay(Level.NORMAL)
        await self._report(Level.NORMAL)
        await self._storm(1.25)
        await self._calm_down()
        for _ in range(2):
            if len(self.seen) == len(Level):
                return
            # The load went past a level between two looks: once more, more slowly.
            self._view.say("Some levels were passed too fast to be seen: again, more slowly.")
            await self._storm(1.1)
            await self._calm_down()

    async def _storm(self, steeper: float) -> None:
        self._k2.tide.rate = _FIRST
        self._view.say("A storm comes up.")
        for level in list(Level)[1:]:
            await self._climb(level, steeper)
        self._k2.tide.rate = _CALM
        self._view.say("The storm is over.")

    async def _climb(self, level: Level, steeper: float) -> None:
        """Turn the market up until `level` is reached, then look at it."""
        tide, until_s = self._k2.tide, time.monotonic() + _CLIMB_S
        while (reached := (await self._look())["level"]) < level:
            if time.monotonic() > until_s:
                raise NotDegraded(
                    f"this machine kept up with {tide.rate:,.0f} messages a second for "
                    f"{_CLIMB_S:.0f} s, so {level.name} was not reached; what K2 does at a level "
                    "can be looked at with `k2 degrade set`"
                )
            tide.rate = min(tide.rate * steeper, _STEEPEST)
            await asyncio.sleep(_LOOK_S)
        if reached > level:
            self._view.say(f"{level.name} was passed between two looks.")
        elif await self._report(level):
            await self._stay(level)
        else:
            self._view.say(f"{level.name} was over before the API was asked: once more.")
            await self._climb(level, steeper)

    async def _stay(self, level: Level) -> None:
        """Hold the lag about where it keeps the level."""
        tide, storm = self._k2.tide, self._k2.tide.rate
        stay = self._enter.wait_for(self._pace.stay_s)
        if self._enter.waits:
            self._view.say(f"          Enter goes on from {level.name}.")
        while stay():
            status = await self._look()
            if level > Level.NORMAL:
                tide.rate = _CALM if status["waiting"] > self._pace.trigger(level) else storm
            await asyncio.sleep(_LOOK_S)
        tide.rate = storm

    async def _calm_down(self) -> None:
        """Until the level is NORMAL and what was put off has been brought."""
        until_s, told = time.monotonic() + _CALMED_S, False
        while time.monotonic() < until_s:
            status = await self._look()
            if status["level"] == Level.NORMAL:
                if not told:
                    await self._report(Level.NORMAL)
                    self._view.say(
                        "NORMAL again: what was put off is read from the log and stored."
                    )
                told = True
                if status["validate"]["shed_pending"] == 0 and status["waiting"] < _CALM:
                    return
            await asyncio.sleep(_LOOK_S)
        raise NotDegraded(f"not NORMAL and caught up {_CALMED_S:.0f} s after the storm")

    async def _look(self) -> dict[str, Any]:
        """Status now; changes of level since the last look are told."""
        status = await self._k2.status()
        history = (await self._k2.get("/v1/degradation"))["history"]
        for change in history:
            if change["at_us"] > self._told_us:
                self.seen.add(Level[change["after"]])
                self._view.changed((change["at_us"] - self._began_us) / 1e6, change)
                self._told_us = change["at_us"]
        self._view.update(status, self._k2.tide.rate)
        return status

    async def _report(self, level: Level) -> bool:
        """Tell what the API answers at a level; False when that was over before it was asked."""
        reply: Reply = await self._k2.ask()
        status = await self._k2.status()
        if level is Level.CIRCUIT_BREAK and reply.status != 503:
            if status["level"] == Level.CIRCUIT_BREAK:
                raise NotDegraded(f"the API answered {reply} at CIRCUIT_BREAK instead of 503")
            return False
        self._view.report(status, await self._k2.shed(), reply)
        return True


async def _walk(pace: Pace, view: View, *, waits: bool) -> tuple[dict[str, Any], bool]:
    with tempfile.TemporaryDirectory(prefix="k2-degradation-") as name:
        async with Rehearsal(Path(name), pace.environment(), _CALM) as rehearsal:
            enter = Enter(sys.stdin, waits=waits)
            walk = Walk(rehearsal, pace, view, enter)
            with view, enter:
                await walk.run()
                view.say("The market closes; what is left is being stored …")
                shed = await rehearsal.shed()
                await rehearsal.finish()
            counts = await asyncio.to_thread(rehearsal.counts)
    whole = all(count.whole for count in counts.values()) and len(walk.seen) == len(Level)
    return {
        "levels": [level.name for level in sorted(walk.seen)],
        "shed": shed,
        "counts": {kind: asdict(count) for kind, count in counts.items()},
        "nothing_lost": all(count.whole for count in counts.values()),
    }, whole


@click.command()
@click.option("--quick", is_flag=True, help="About a minute: lower triggers, shorter looks.")
@click.option("--json", "as_json", is_flag=True, help="No screen; end with one JSON object.")
def degradation(quick: bool, as_json: bool) -> None:
    """Overload a K2 of its own, level by level, and show that nothing is lost.

    A simulated market grows until one worker (on one processor, its triggers lowered) falls behind
    it. At each level: lag, memory, what is put off, and what the API answers. Then the market calms
    down, the worker catches up, and every id that was sent is looked for in the lake. On a terminal
    each level is held until Enter is pressed, unless --quick is given.
    """
    pace, console = (QUICK if quick else WHOLE), Console(stderr=as_json)
    live = console.is_terminal and not as_json
    waits = live and not quick and sys.stdin.isatty()
    console.print(table(pace.lags), highlight=False)
    result, whole = asyncio.run(_walk(pace, View(console, live=live), waits=waits))
    console.print(proof(result), highlight=False)
    if as_json:
        print(json.dumps(result), flush=True)
    if not whole:
        raise SystemExit(1)
