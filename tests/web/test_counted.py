"""Every request is counted: those that fail by why, those whose client left as well."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client import REGISTRY

from k2.testing.clock import eventually
from k2.web.context import CONTEXT, RequestDone
from k2.web.middleware import envelope
from tests.web.api import KEY, Api


def shown(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_a_request_whose_client_left_is_counted() -> None:
    begun, done = asyncio.Event(), list[RequestDone]()

    async def slow(_request: web.Request) -> web.Response:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    app = web.Application(middlewares=[envelope])
    app.router.add_get("/v1/slow", slow)
    context: Any = SimpleNamespace(observe=done.append)
    app[CONTEXT] = context
    labels = {"method": "GET", "endpoint": "/v1/slow"}
    async with TestServer(app) as server, aiohttp.ClientSession() as http:
        asking = asyncio.create_task(http.get(server.make_url("/v1/slow")))
        await begun.wait()
        assert shown("k2_http_requests_in_progress", **labels) == 1
        asking.cancel()
        await eventually(lambda: done)
    assert [(one.route, one.status) for one in done] == [("/v1/slow", 499)]
    assert shown("k2_http_requests_in_progress", **labels) == 0
    assert shown("k2_http_request_errors_total", error_type="client_left", **labels) == 1


@pytest.mark.parametrize(
    ("path", "route", "error"),
    [
        ("/v1/trades?limit=-1", "/v1/trades", "invalid_parameter"),
        ("/v1/nowhere", "(none)", "not_found"),
        ("/v1/sql?sql=drop table trades", "/v1/sql", "invalid_parameter"),
    ],
)
async def test_failures_count_by_code(api: Api, path: str, route: str, error: str) -> None:
    labels = {"method": "GET", "endpoint": route, "error_type": error}
    before = shown("k2_http_request_errors_total", **labels)
    async with api.client.get(path, headers=KEY) as response:
        assert response.status >= 400
        assert (await response.json())["detail"]["error"] == error
    assert shown("k2_http_request_errors_total", **labels) == before + 1


async def test_a_refusal_by_key_counts_by_its_status(api: Api) -> None:
    labels = {"method": "GET", "endpoint": "/v1/trades", "error_type": "unauthorized"}
    before = shown("k2_http_request_errors_total", **labels)
    async with api.client.get("/v1/trades") as response:
        assert response.status == 401
    assert shown("k2_http_request_errors_total", **labels) == before + 1


async def test_bodies_above_the_limit_count(api: Api) -> None:
    labels = {"method": "POST", "endpoint": "/v1/sql"}
    before = shown("k2_http_request_size_limit_exceeded_total", **labels)
    status, _ = await api.post({"sql": "x" * 20_000})
    assert status == 413
    assert shown("k2_http_request_size_limit_exceeded_total", **labels) == before + 1
