"""K2's HTTP interface on a real lake and tail, for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from k2.clock import SYSTEM_CLOCK
from k2.lake.tables import QUOTES
from k2.settings import Degradation
from k2.steps.control import ControlStep
from k2.testing.shared import SharedEntries
from k2.web.api import build_api
from k2.web.context import ApiContext, Check, RequestDone
from k2.web.keys import KeyRing
from tests.query.conftest import Platform
from tests.query.rows import T0_US, place, rows

KEY = {"X-API-Key": "right"}


@dataclass
class Api:
    platform: Platform
    client: TestClient
    level: int = 0
    checks: list[Check] = field(default_factory=list)
    done: list[RequestDone] = field(default_factory=list)
    workers: list[dict[str, Any]] = field(default_factory=list)

    async def get(self, path: str, **params: Any) -> tuple[int, dict[str, Any]]:
        async with self.client.get(path, params=params, headers=KEY) as response:
            return response.status, await response.json()

    async def post(
        self, body: Any, path: str = "/v1/sql", **more: Any
    ) -> tuple[int, dict[str, Any]]:
        async with self.client.post(path, json=body, headers=KEY, **more) as response:
            return response.status, await response.json()


@asynccontextmanager
async def running(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    """The interface over ten cold trades and five hot ones, and one quote."""
    platform = Platform(path, monkeypatch)
    made = Api(platform, client=None)  # type: ignore[arg-type]

    async def send(*, value: dict[str, Any], within_s: float = 0.0) -> None:
        control.judge(value)  # one worker that owns the control partition

    control = ControlStep(
        Degradation(_env_file=None), SharedEntries(), send, lambda: 0, SYSTEM_CLOCK, "w1"
    )
    context = ApiContext(
        queries=platform.engine,
        keys=KeyRing.single("right"),
        version="1.2.3",
        status=lambda: {"roles": ["query"]},
        checks=lambda: made.checks,
        level=lambda: made.level,
        max_rows=500,
        max_body_bytes=10_000,
        observe=made.done.append,
        degradation=control,
        workers=lambda: made.workers,
    )
    made.client = TestClient(TestServer(build_api(context)))
    await made.client.start_server()
    cold = rows(range(10), [T0_US + i * 1_000_000 for i in range(10)], vendor_data='{"m":"1"}')
    platform.commit(cold, place())
    platform.refresh()
    platform.tails["trades"].start(place(), 9)
    hot = rows(range(10, 15), [T0_US + i * 1_000_000 for i in range(10, 15)], symbols="ETHUSDT")
    platform.produce(hot, place())
    platform.commit(rows([0], [T0_US], table=QUOTES), place(kind="quotes"), kind="quotes")
    platform.refresh()
    try:
        yield made
    finally:
        await made.client.close()
        platform.close()
