"""What one worker shows of all of them."""

from __future__ import annotations

import dataclasses
from typing import Any

from aiohttp.test_utils import TestClient, TestServer

from k2.errors import LakeError
from k2.web.api import build_api
from k2.web.context import CONTEXT
from tests.web.api import Api

PATHS = ("/v1/workers", "/v1/feeds", "/v1/gaps", "/v1/shed", "/v1/status", "/v1/degradation")
SESSION = {"session": "binance-0", "exchange": "binance", "state": "connected", "symbol_count": 3}


def worker(name: str, **more: Any) -> dict[str, Any]:
    return {"worker": name, "here": False, "age_s": 1.0, "roles": [], "lag": 0, **more}


def fill(api: Api) -> None:
    """Asked is a worker that only answers; others move the records."""
    api.workers = [
        worker("q", here=True, age_s=0.0, roles=["query"]),
        worker("s", roles=["source"], frames=900, lag=4, sessions=[SESSION]),
        worker("v", records=80, lag=6, rows=70, shed_pending={"3": 5, "2": 1}, shed_brought=2),
        worker("w", records=20, rows=30, shed_pending={"3": 10}),
    ]


async def test_every_worker_is_listed_the_one_that_is_asked_first(api: Api) -> None:
    fill(api)
    status, body = await api.get("/v1/workers")
    assert (status, body["data"]) == (200, api.workers)


async def test_sessions_of_all_workers_are_named_with_theirs(api: Api) -> None:
    fill(api)
    _, body = await api.get("/v1/feeds")
    assert body["data"] == [
        {"worker": "s", "url": None, "symbols": None, **SESSION, "quality": []}
        | {"open_gaps": 0, "missing_ids": 0}
    ]


async def test_what_is_put_off_adds_up(api: Api) -> None:
    fill(api)
    _, body = await api.get("/v1/shed")
    assert body["data"] == {
        "workers": 4,
        "pending": 16,
        "pending_by_tier": {"2": 1, "3": 15},
        "brought": 2,
    }


async def test_status_has_the_totals(api: Api) -> None:
    fill(api)
    _, body = await api.get("/v1/status")
    found = body["data"]["cluster"]
    names = ("workers", "frames", "records", "rows", "lag", "shed_pending", "dead_letters")
    assert [found[name] for name in names] == [4, 900, 100, 100, 10, 16, 0]


async def test_they_answer_at_circuit_break(api: Api) -> None:
    fill(api)
    api.level = 4
    assert {path: (await api.get(path))[0] for path in PATHS} == dict.fromkeys(PATHS, 200)
    assert (await api.get("/v1/trades"))[0] == 503


async def test_they_answer_on_a_worker_that_answers_no_queries(api: Api) -> None:
    fill(api)
    context = dataclasses.replace(api.client.app[CONTEXT], answers_queries=False)
    async with TestClient(TestServer(build_api(context))) as client:
        other = Api(api.platform, client)
        assert {path: (await other.get(path))[0] for path in PATHS} == dict.fromkeys(PATHS, 200)
        status, body = await other.get("/v1/trades")
    assert (status, "K2_ROLES" in body["detail"]["message"]) == (503, True)


async def test_sessions_are_told_while_the_lake_is_away(api: Api, monkeypatch: Any) -> None:
    fill(api)

    async def away(*_: object, **__: object) -> None:
        raise LakeError("the lake does not answer")

    monkeypatch.setattr(type(api.platform.engine), "sql", away)
    status, body = await api.get("/v1/feeds")
    (row,) = body["data"]
    assert (status, row["state"], row["open_gaps"]) == (200, "connected", None)
    assert (await api.get("/v1/gaps"))[0] == 503
