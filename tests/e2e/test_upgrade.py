"""A version of K2 rolled over a running one, worker by worker, and back."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster import (
    FEED,
    FIRST_ID,
    SYMBOLS,
    Cluster,
    every_trade_once,
    sessions,
    spread,
)
from tests.services.require import require

pytestmark = [pytest.mark.kafka, pytest.mark.heavy, pytest.mark.timeout(300)]

#: A version whose state, topics and tables every later one goes on with.
BEFORE = "aa63ff0"
_PARTS = ("k2", "agents", "tables", "schemas")


@pytest.fixture
def older(tmp_path: Path) -> dict[str, str]:
    """Variables that make a worker run the older version."""
    archive = subprocess.run(["git", "archive", BEFORE, *_PARTS], capture_output=True, check=False)
    require(archive.stderr.decode() and f"version {BEFORE} is not in this clone; fetch all of it")
    into = tmp_path / "older"
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as content:
        content.extractall(into, filter="data")
    # Without the working directory, which has the newer one.
    environment = {"PYTHONPATH": str(into), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", "import k2; print(k2.__file__)"]
    found = subprocess.run(command, env=os.environ | environment, capture_output=True, check=True)
    assert found.stdout.decode().startswith(str(into))
    return environment


def stored_rows(found: dict[str, Any]) -> dict[str, int]:
    """Trades each worker has stored."""
    return {name: status["sink"]["tables"]["trades"]["rows"] for name, status in found.items()}


async def test_a_version_is_rolled_over_a_running_one_and_back(
    cluster: Cluster, older: dict[str, str], tmp_path: Path
) -> None:
    await cluster.start_exchange(
        "simulate", "--symbols", ",".join(SYMBOLS), "--rate", "400", "--first-id", str(FIRST_ID)
    )

    async def shared(what: str) -> None:
        await cluster.until(what, lambda f: spread(f) and all(sessions(f).values()))
        before = stored_rows(await cluster.statuses())

        def stored(found: dict[str, Any]) -> bool:
            return any(rows > before[name] for name, rows in stored_rows(found).items())

        await cluster.until(f"{what}, and store", stored)

    await cluster.start("a", **FEED, **older)
    await cluster.start("b", **FEED, **older)
    await shared("two of the older version share the sessions")
    assert await cluster.stop("a") == 0
    await cluster.start("c", **FEED)
    await shared("one of each version")
    assert await cluster.stop("b") == 0
    await cluster.start("d", **FEED)
    await shared("two of the newer version")
    assert await cluster.stop("c") == 0
    await cluster.start("e", **FEED, **older)
    await shared("one of each again")
    assert await cluster.stop("d") == 0
    await cluster.until("the older one runs all", spread)
    exchange = cluster.exchange
    assert exchange is not None
    await exchange.stop_exchange()
    await cluster.until("drained", lambda found: found["e"]["drained"])
    assert await cluster.stop("e") == 0

    every_trade_once(tmp_path / "data")
