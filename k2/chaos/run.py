"""One run: faults one after the other, each seen to be over before the next, then the count."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from k2.chaos.cluster import ChaosError, Cluster, Options
from k2.chaos.scenarios import SCENARIOS, Scenario
from k2.chaos.verify import Findings, read_logs, verify
from k2.codec.http_registry import HttpRegistry
from k2.codec.registry import FileRegistry
from k2.codecs import Codecs
from k2.dlq.log import EmbeddedLog, Log
from k2.errors import K2Error
from k2.settings import Kafka
from k2.topics import MARKET_TOPICS
from k2.transport.local.shared import acquire, release

RECOVERY_S = 90.0
_DRAIN_S = 120.0
_SMALL_DISK = "size=768m"


@dataclass
class Struck:
    """One fault: how long until rows landed again after it was lifted; None: not in time."""

    scenario: str
    at_s: float
    recovery_s: float | None
    problem: str = ""


@dataclass
class Report:
    """What `k2 chaos` prints."""

    seed: int
    seconds: float = 0.0
    struck: list[Struck] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    measured: dict[str, list[float]] = field(default_factory=dict)
    restarts: dict[str, list[str]] = field(default_factory=dict)
    late: list[str] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """True when every promise was kept and every fault recovered from."""
        return not self.findings.problems and all(not one.problem for one in self.struck)

    def as_json(self) -> dict[str, Any]:
        """The object `--json` ends with."""
        found = self.findings
        return {
            "seed": self.seed,
            "faults": len(self.struck),
            "acknowledged": found.acknowledged,
            "landed": found.landed,
            "dead_letters": found.dead_letters,
            "lost": found.lost,
            "duplicated": found.duplicated,
            "seconds": round(self.seconds, 1),
            "duplicates_dropped": found.duplicates_dropped,
            "missing_ids": found.missing_ids,
            "gap_ids": found.gap_ids,
            "held": self.held,
            "problems": found.problems
            + [f"{s.scenario}: {s.problem}" for s in self.struck if s.problem],
            "late": self.late,
            "scenarios": self.by_scenario(),
            "measured_s": {k: [round(v, 2) for v in vs] for k, vs in self.measured.items()},
            "own_stops": self.restarts,
            "errors_logged": found.errors_logged,
        }

    def by_scenario(self) -> dict[str, dict[str, Any]]:
        """Per scenario: how often, and the seconds to recovery."""
        found: defaultdict[str, list[float]] = defaultdict(list)
        for one in self.struck:
            found[one.scenario].append(-1.0 if one.recovery_s is None else one.recovery_s)
        return {
            name: {"count": len(times), "recovery_s": [round(t, 2) for t in times]}
            for name, times in found.items()
        }


async def run(
    options: Options,
    *,
    minutes: float,
    scenarios: Sequence[Scenario] = SCENARIOS,
    rounds: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Report:
    """Break things for `minutes` (or `rounds` through all scenarios), then count."""
    report = Report(options.seed)
    with ExitStack() as stack:
        if options.embedded:
            _small_disk(options, stack)
        tell("starting services, exchange and workers")
        async with Cluster(options) as cluster:
            began_s = time.monotonic()
            first = await cluster.progress.mark()
            if await cluster.progress.recovered(first, 3 * RECOVERY_S) is None:
                raise ChaosError("no row landed although nothing was broken")
            fitting = [one for one in scenarios if one.fits(cluster)]
            tell(f"{len(fitting)} scenarios for {minutes:g} minutes, seed {options.seed}")
            await _strike_all(cluster, report, fitting, began_s + minutes * 60, rounds, tell)
            tell("waiting until everything is stored")
            await _finish(cluster, report, tell)
            report.seconds = time.monotonic() - began_s
            report.measured = cluster.measured
            report.late = cluster.late
            report.restarts = {w.name: w.own_stops for w in cluster.workers if w.own_stops}
    return report


def _small_disk(options: Options, stack: ExitStack) -> None:
    """A file system of its own for the data directory, that can be filled; needs root."""
    mount = shutil.which("mount")
    directory = options.directory / "disk"
    directory.mkdir(parents=True, exist_ok=True)
    if mount is None:
        return
    command = [mount, "-t", "tmpfs", "-o", _SMALL_DISK, "k2-chaos", str(directory)]
    if subprocess.run(command, capture_output=True, check=False).returncode == 0:  # noqa: S603
        stack.callback(
            subprocess.run, ["umount", "-l", str(directory)], capture_output=True, check=False
        )
        options.data_dir = directory / "data"


async def _strike_all(
    cluster: Cluster,
    report: Report,
    scenarios: Sequence[Scenario],
    end_s: float,
    rounds: int | None,
    tell: Callable[[str], None],
) -> None:
    """Every scenario once in an order by the seed, again and again."""
    rng = random.Random(cluster.options.seed)  # noqa: S311 - to repeat a run, not a secret
    began_s, done = time.monotonic(), 0
    while rounds is None or done < rounds:
        for scenario in rng.sample(scenarios, len(scenarios)):
            if time.monotonic() >= end_s:
                return
            # Its own generator: what one scenario draws does not change the next.
            struck = await _strike(cluster, scenario, random.Random(rng.random()))  # noqa: S311
            struck.at_s -= began_s
            report.struck.append(struck)
            shown = "not recovered" if struck.recovery_s is None else f"{struck.recovery_s:.1f} s"
            tell(f"{len(report.struck):3}  {scenario.name:<26} {shown}  {struck.problem}")
            if struck.recovery_s is None:
                return
        done += 1


async def _strike(cluster: Cluster, scenario: Scenario, rng: random.Random) -> Struck:
    struck = Struck(scenario.name, time.monotonic(), None)
    try:
        if scenario.settled:
            await cluster.settle()
        mark = await scenario.strike(cluster, rng)
    except (K2Error, TimeoutError) as exc:
        struck.problem = str(exc) or type(exc).__name__
        await cluster.mend()
        mark = await cluster.progress.mark()
    struck.recovery_s = await cluster.progress.recovered(mark, RECOVERY_S)
    if struck.recovery_s is None:
        behind = await cluster.progress.behind(mark)
        struck.problem += f" nothing landed within {RECOVERY_S:g} s in {[tuple(b) for b in behind]}"
    return struck


async def _finish(cluster: Cluster, report: Report, tell: Callable[[str], None]) -> None:
    """The exchange ends, what the log has lands, the workers stop, everything is counted."""
    await cluster.settle()
    await cluster.stop_exchange()
    await cluster.drained(_DRAIN_S)
    for worker in cluster.workers:
        status, seconds = await cluster.stop_worker(worker)
        cluster.note("graceful stop of a worker", seconds)
        if status != 0:
            report.findings.problems.append(f"{worker.name} stopped with status {status}")
    tell("counting")
    if cluster.log is not None:
        registry = HttpRegistry(cluster.services.registry_url)
        try:
            codecs = Codecs.open(registry, MARKET_TOPICS)
            found = await verify(cluster.log, codecs, cluster.progress, cluster.options.partitions)
        finally:
            registry.close()
    else:
        codecs = Codecs.open(FileRegistry(cluster.data_dir / "registry"), MARKET_TOPICS)
        store = acquire(cluster.data_dir / "log")
        try:
            log: Log = EmbeddedLog(store, Kafka.model_construct())
            found = await verify(log, codecs, cluster.progress, cluster.options.partitions)
        finally:
            release(store)
    found.problems = report.findings.problems + found.problems
    report.findings = found
    await asyncio.to_thread(read_logs, found, [worker.log_file for worker in cluster.workers])


def keep(directory: Path) -> None:
    """The directory of a run must be empty."""
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise ChaosError(f"{directory} is not empty; name another --dir, or delete it")
