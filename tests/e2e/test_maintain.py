"""One maintainer among workers that could all be it, and another when it dies."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.e2e.cluster import FEED, FIRST_ID, SYMBOLS, Cluster, every_trade_once

pytestmark = [pytest.mark.kafka, pytest.mark.heavy, pytest.mark.timeout(300)]

QUICK = {"K2_MAINTAIN_INTERVAL_S": "0.3", "K2_MAINTAIN_MIN_FILES": "3"}
ROUNDS = 'k2_maintenance_duration_seconds_count{table="trades"}'
MERGED = 'k2_maintenance_files_total{action="merged",table="trades"}'


async def _counts(cluster: Cluster, sample: str) -> dict[str, float]:
    names = list(cluster.workers)
    found = await asyncio.gather(*(cluster.workers[name].metrics() for name in names))
    return {name: one.get(sample, 0.0) for name, one in zip(names, found, strict=True)}


async def _maintainers(cluster: Cluster) -> set[str]:
    """Who made a round between two looks of some rounds' distance."""
    before = await _counts(cluster, ROUNDS)
    after = before
    async with asyncio.timeout(60):
        while max(after[name] - before[name] for name in before) < 4:
            await asyncio.sleep(0.2)
            after = await _counts(cluster, ROUNDS)
    return {name for name in before if after[name] > before[name]}


async def test_one_worker_maintains_and_another_takes_over(
    cluster: Cluster, tmp_path: Path
) -> None:
    await cluster.start_exchange(
        *("simulate", "--symbols", ",".join(SYMBOLS), "--rate", "400"),
        *("--first-id", str(FIRST_ID)),
    )
    await cluster.start("a", **FEED, **QUICK)
    await cluster.start("b", **FEED, **QUICK)
    # After the rebalance, so that a round begun before it does not count.
    await _maintainers(cluster)
    first = await _maintainers(cluster)
    assert len(first) == 1
    (elected,) = first
    async with asyncio.timeout(60):
        while not (await _counts(cluster, MERGED))[elected]:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.2)
    await cluster.kill(elected)
    assert await _maintainers(cluster) == set(cluster.workers)
    # It comes back: again there is one, whoever it is.
    await cluster.start(elected, **FEED, **QUICK)
    await _maintainers(cluster)
    assert len(await _maintainers(cluster)) == 1
    assert cluster.exchange is not None
    await cluster.exchange.stop_exchange()
    await cluster.until(
        "drained", lambda found: all(one["drained"] for one in found.values()), timeout_s=90
    )
    for name in list(cluster.workers):
        assert await cluster.stop(name) == 0
    every_trade_once(tmp_path / "data")
