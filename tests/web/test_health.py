"""`/health` in figures: a score, and how old the last frame of each session is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from k2.web.api import build_api
from k2.web.context import ApiContext, Check, Health
from k2.web.keys import KeyRing
from k2.web.resources.operations import score

NOW_US = 1_700_000_000_000_000


def feeds(*statuses: Health) -> list[Check]:
    return [Check(f"feed x-{at}", status) for at, status in enumerate(statuses)]


@pytest.mark.parametrize(
    ("checks", "points"),
    [
        ([], 100),
        ([Check("log", "healthy")], 100),
        ([Check("log", "healthy"), Check("lake", "degraded")], 75),
        ([Check("log", "healthy"), *feeds("healthy", "degraded", "degraded", "degraded")], 81),
        ([Check("log", "unhealthy"), *feeds(*["healthy"] * 20)], 0),
    ],
)
def test_score(checks: list[Check], points: int) -> None:
    assert score(checks) == points


async def test_health_tells_of_every_session(tmp_path: Path) -> None:
    unused: Any = None
    sessions = [
        {"session": "a-0", "exchange": "a", "state": "connected", "last_frame_us": NOW_US - 2_500},
        {"session": "a-1", "exchange": "a", "state": "waiting", "last_frame_us": 0},
    ]
    checks = [Check("log", "healthy"), Check("feed a-0", "healthy"), Check("feed a-1", "degraded")]
    context = ApiContext(
        queries=unused,
        keys=KeyRing.single("right"),
        version="1",
        status=dict,
        checks=lambda: checks,
        level=lambda: 0,
        max_rows=1,
        max_body_bytes=1,
        feeds=lambda: sessions,
        now_us=lambda: NOW_US,
    )
    async with TestClient(TestServer(build_api(context))) as client:
        body = (await (await client.get("/health")).json())["data"]
    assert body["score"] == 88
    assert body["feeds"] == [
        {
            "exchange": "a",
            "session": "a-0",
            "state": "connected",
            "status": "healthy",
            "last_frame_age_s": 0.003,
        },
        {
            "exchange": "a",
            "session": "a-1",
            "state": "waiting",
            "status": "degraded",
            "last_frame_age_s": None,
        },
    ]
