"""Everything that can be made to go wrong, in one list.

A scenario strikes, lifts its fault, and returns the moment after which rows must land again in
every partition. What it picks comes from the generator it is given, so a seed repeats it.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from k2 import faultpoints
from k2.chaos.brokers import Broker
from k2.chaos.cluster import ChaosError, Cluster, Worker
from k2.chaos.progress import Mark
from k2.chaos.services import SESSION_TIMEOUT_S
from k2.faultpoints import Point
from k2.testing.proxy import Behaviour, TcpProxy

#: A worker that is killed must be replaced within the session timeout and this.
FAILOVER_S: Final = 5.0
#: A graceful stop must hand over within this.
HANDOVER_S: Final = 10.0
_RECOVERY_S: Final = 60.0
_SMALL_FS_BYTES: Final = 2 * 1024**3

Strike = Callable[[Cluster, random.Random], Awaitable[Mark]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """`on`: the logs it runs with; `workers`, `brokers`: how many it needs; `settled`: only once
    every worker serves again."""

    name: str
    strike: Strike
    on: tuple[str, ...] = ("kafka", "embedded")
    workers: int = 1
    brokers: int = 1
    settled: bool = False

    def fits(self, cluster: Cluster) -> bool:
        options = cluster.options
        return (
            ("embedded" if options.embedded else "kafka") in self.on
            and len(cluster.workers) >= self.workers
            and (options.embedded or options.brokers >= self.brokers)
        )


# -- workers -----------------------------------------------------------------------------------


async def _kill_at(point: Point, cluster: Cluster, _: random.Random) -> Mark:
    await cluster.strike(point, "kill")
    return await cluster.progress.mark()


async def _kill_in_rebalance(point: Point, cluster: Cluster, rng: random.Random) -> Mark:
    """Another worker leaves and comes back; whoever gets to the point first dies there."""
    leaving = rng.choice(cluster.workers)
    faultpoints.arm(cluster.points, point, "kill")
    if len(cluster.workers) == 1:
        leaving.signal(signal.SIGKILL)
    else:
        await cluster.stop_worker(leaving)
        await cluster.start_worker(leaving, wait=False)
    await cluster.struck(point)
    return await cluster.progress.mark()


async def _freeze(cluster: Cluster, rng: random.Random) -> Mark:
    """Stopped at a point for less than the session timeout."""
    victim = await cluster.strike(rng.choice(_ZOMBIE_POINTS), "stop")
    await asyncio.sleep(SESSION_TIMEOUT_S / 2)
    victim.signal(signal.SIGCONT)
    return await cluster.progress.mark()


async def _zombie(cluster: Cluster, rng: random.Random) -> Mark:
    """Stopped at a point until its partitions are somebody else's, then revived."""
    victim = await _bury(cluster, rng)
    victim.signal(signal.SIGCONT)
    return await cluster.progress.mark()


async def _zombie_rebalance_resend(cluster: Cluster, rng: random.Random) -> Mark:
    """Revived, then partitions move once more, then the exchange sends old ids again."""
    victim = await _bury(cluster, rng)
    victim.signal(signal.SIGCONT)
    await asyncio.sleep(1.0)
    other = next(worker for worker in cluster.workers if worker is not victim)
    await cluster.stop_worker(other)
    await cluster.start_worker(other)
    await cluster.exchange_fault("resend", n=5_000)
    return await cluster.progress.mark()


async def _bury(cluster: Cluster, rng: random.Random) -> Worker:
    victim = await cluster.strike(rng.choice(_ZOMBIE_POINTS), "stop")
    await _recovered(cluster, await cluster.progress.mark(), "the others took over")
    return victim


_ZOMBIE_POINTS: Final = (
    Point.AFTER_DECODE,
    Point.AFTER_PRODUCE,
    Point.AFTER_PARQUET,
    Point.BEFORE_COMMIT,
    Point.AFTER_COMMIT,
)


async def _recovered(
    cluster: Cluster, mark: Mark, what: str, within_s: float = _RECOVERY_S
) -> float:
    seconds = await cluster.progress.recovered(mark, _RECOVERY_S)
    if seconds is None:
        raise ChaosError(f"{what}: not within {_RECOVERY_S:g} s")
    if seconds > within_s:
        cluster.late.append(f"{what} after {seconds:.1f} s, allowed are {within_s:g} s")
    return seconds


async def _kill_worker(cluster: Cluster, rng: random.Random) -> Mark:
    """kill -9 from outside; the others must take over in time before it comes back."""
    victim = rng.choice(cluster.workers)
    mark = await cluster.progress.mark()
    await cluster.kill_worker(victim)
    if len(cluster.workers) > 1:
        allowed_s = SESSION_TIMEOUT_S + FAILOVER_S
        seconds = await _recovered(cluster, mark, f"{victim.name} replaced", allowed_s)
        cluster.note("worker kill to first row landed everywhere", seconds)
    await cluster.start_worker(victim)
    return await cluster.progress.mark()


async def _stop_worker(cluster: Cluster, rng: random.Random) -> Mark:
    """A stop in good order: status 0, and the others have the partitions in time."""
    victim = rng.choice(cluster.workers)
    mark = await cluster.progress.mark()
    status, seconds = await cluster.stop_worker(victim)
    if status != 0:
        raise ChaosError(f"{victim.name} stopped with status {status}: {victim.log_tail()}")
    cluster.note("graceful stop of a worker", seconds)
    if len(cluster.workers) > 1:
        handed = await _recovered(cluster, mark, f"{victim.name} handed over", HANDOVER_S)
        cluster.note("graceful stop to first row landed everywhere", handed)
    await cluster.start_worker(victim)
    return await cluster.progress.mark()


async def _rolling(cluster: Cluster, _: random.Random) -> Mark:
    for worker in cluster.workers:
        await cluster.stop_worker(worker)
        await cluster.start_worker(worker)
    return await cluster.progress.mark()


# -- the log -----------------------------------------------------------------------------------


def _broker(cluster: Cluster, rng: random.Random) -> Broker:
    assert cluster.services.brokers is not None
    return rng.choice(cluster.services.brokers.nodes)


async def _restart_broker(cluster: Cluster, rng: random.Random) -> Mark:
    assert cluster.services.brokers is not None
    await cluster.services.brokers.restart(_broker(cluster, rng), kill=False, away_s=1.0)
    return await cluster.progress.mark()


async def _kill_broker(cluster: Cluster, rng: random.Random) -> Mark:
    """kill -9; rows must land while it is away."""
    node = _broker(cluster, rng)
    mark = await cluster.progress.mark()
    await asyncio.to_thread(node.kill)
    seconds = await _recovered(cluster, mark, "rows land without the broker")
    cluster.note("broker kill to first row landed everywhere", seconds)
    node.spawn()
    await node.until_healthy()
    return await cluster.progress.mark()


async def _disk_full(cluster: Cluster, _: random.Random) -> Mark:
    """No byte can be written below the data directory for some seconds."""
    directory = cluster.data_dir
    stat = os.statvfs(directory)
    if stat.f_blocks * stat.f_frsize > _SMALL_FS_BYTES:
        await _file_size_limit(cluster)
    else:
        ballast = directory / "ballast"
        try:
            await asyncio.to_thread(_fill, ballast)
            await asyncio.sleep(5.0)
        finally:
            ballast.unlink(missing_ok=True)
    return await cluster.progress.mark()


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 4_096, 64):
            try:
                while file.write(b"\0" * size) == size:
                    pass
            except OSError:
                continue  # full to this size


async def _file_size_limit(cluster: Cluster) -> None:
    """The same on a large disk: the process may not make any file longer."""
    pid = cluster.workers[0].pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, hard))
    await asyncio.sleep(5.0)
    try:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
    except ProcessLookupError:
        return  # it stopped, as it may


# -- registry, catalog, store ------------------------------------------------------------------


async def _misbehave(proxy: TcpProxy | None, behaviour: Behaviour, seconds: float) -> None:
    assert proxy is not None
    proxy.behave(behaviour)
    try:
        await asyncio.sleep(seconds)
    finally:
        proxy.behave()


async def _registry_down(cluster: Cluster, rng: random.Random) -> Mark:
    """Workers that run go on; one that starts meanwhile says why it cannot and tries again."""
    victim = rng.choice(cluster.workers)
    proxy = cluster.services.registry
    assert proxy is not None
    proxy.behave(Behaviour(down=True))
    try:
        victim.signal(signal.SIGKILL)
        await asyncio.sleep(6.0)
    finally:
        proxy.behave()
    return await cluster.progress.mark()


async def _catalog_down(cluster: Cluster, _: random.Random) -> Mark:
    await _misbehave(cluster.services.catalog, Behaviour(down=True), 5.0)
    return await cluster.progress.mark()


async def _catalog_reply_lost(cluster: Cluster, _: random.Random) -> Mark:
    """The commit takes effect and its answer never arrives."""
    proxy = cluster.services.catalog
    assert proxy is not None
    state = Behaviour(swallow=b"COMMIT", swallow_left=2)
    proxy.behave(state)
    try:
        async with asyncio.timeout(20):
            while not state.swallowed:  # noqa: ASYNC110 - another process commits
                await asyncio.sleep(0.05)
    finally:
        proxy.behave()
    return await cluster.progress.mark()


async def _store_down(cluster: Cluster, _: random.Random) -> Mark:
    await _misbehave(cluster.services.store, Behaviour(down=True), 5.0)
    return await cluster.progress.mark()


async def _store_slow(cluster: Cluster, _: random.Random) -> Mark:
    await _misbehave(cluster.services.store, Behaviour(delay_s=0.4), 6.0)
    return await cluster.progress.mark()


async def _store_500(cluster: Cluster, _: random.Random) -> Mark:
    await _misbehave(cluster.services.store, Behaviour(error_500=True), 5.0)
    return await cluster.progress.mark()


async def _commit_unknown(cluster: Cluster, _: random.Random) -> Mark:
    """The same as a lost reply, where the catalog is a file."""
    await cluster.strike(Point.AFTER_COMMIT, "raise")
    return await cluster.progress.mark()


async def _catalog_locked(cluster: Cluster, _: random.Random) -> Mark:
    """Another program holds the catalog's file."""
    catalog = sqlite3.connect(cluster.data_dir / "catalog.db", timeout=10, isolation_level=None)
    try:
        catalog.execute("begin exclusive")
        await asyncio.sleep(4.0)
        catalog.execute("rollback")
    finally:
        catalog.close()
    return await cluster.progress.mark()


async def _files_away(cluster: Cluster, _: random.Random) -> Mark:
    """Nothing can be written where the data files are."""
    here, away = cluster.data_dir / "warehouse", cluster.data_dir / "warehouse.away"
    here.rename(away)
    here.touch()
    try:
        await asyncio.sleep(4.0)
    finally:
        here.unlink()
        away.rename(here)
    return await cluster.progress.mark()


# -- the exchange ------------------------------------------------------------------------------


async def _exchange(
    kind: str, count: tuple[int, int] | None, cluster: Cluster, rng: random.Random
) -> Mark:
    parameters = {} if count is None else {"n": rng.randint(*count)}
    await cluster.exchange_fault(kind, **parameters)
    await asyncio.sleep(0.5)
    return await cluster.progress.mark()


async def _disconnect(cluster: Cluster, _: random.Random) -> Mark:
    await cluster.exchange_fault("disconnect", abort=True)
    return await cluster.progress.mark()


_KAFKA, _EMBEDDED = ("kafka",), ("embedded",)
_AT: Final = tuple(p for p in Point if p not in (Point.BEFORE_REVOKE, Point.ON_ASSIGN))

SCENARIOS: Final[tuple[Scenario, ...]] = (
    *(Scenario(f"kill-{point}", partial(_kill_at, point)) for point in _AT),
    Scenario(
        "kill-before-revoke",
        partial(_kill_in_rebalance, Point.BEFORE_REVOKE),
        _KAFKA,
        2,
        settled=True,
    ),
    Scenario("kill-on-assign", partial(_kill_in_rebalance, Point.ON_ASSIGN), settled=True),
    Scenario("kill-worker", _kill_worker, settled=True),
    Scenario("stop-worker", _stop_worker, settled=True),
    Scenario("rolling-restart", _rolling, settled=True),
    Scenario("freeze", _freeze, settled=True),
    Scenario("zombie", _zombie, _KAFKA, 2, settled=True),
    Scenario("zombie-rebalance-resend", _zombie_rebalance_resend, _KAFKA, 2, settled=True),
    Scenario("broker-restart", _restart_broker, _KAFKA),
    Scenario("broker-kill", _kill_broker, _KAFKA, 1, 3),
    Scenario("registry-down", _registry_down, _KAFKA),
    Scenario("catalog-down", _catalog_down, _KAFKA),
    Scenario("catalog-reply-lost", _catalog_reply_lost, _KAFKA),
    Scenario("store-down", _store_down, _KAFKA),
    Scenario("store-slow", _store_slow, _KAFKA),
    Scenario("store-500", _store_500, _KAFKA),
    Scenario("commit-unknown", _commit_unknown),
    Scenario("catalog-locked", _catalog_locked, _EMBEDDED),
    Scenario("files-away", _files_away, _EMBEDDED),
    Scenario("disk-full", _disk_full, _EMBEDDED),
    Scenario("exchange-duplicates", partial(_exchange, "duplicate", (50, 500))),
    Scenario("exchange-reorders", partial(_exchange, "reorder", (20, 200))),
    Scenario("exchange-resends", partial(_exchange, "resend", (500, 5_000))),
    Scenario("exchange-tears-frame", partial(_exchange, "cut", None)),
    Scenario("exchange-disconnects", _disconnect),
)
