"""K2's routes at the root of Faust's own web server, Faust's pages below /faust/."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import faust
import pytest
from aiohttp import ClientSession
from prometheus_client import REGISTRY

from k2.dev.process import free_ports
from k2.web.api import build_api
from k2.web.context import ApiContext
from k2.web.keys import KeyRing
from k2.web.mount import mount
from tests.query.conftest import Platform


@pytest.fixture
async def url(platform: Platform):
    app = faust.App("k2-mount", broker="memory://", web_bind="127.0.0.1", web_port=free_ports(1)[0])
    context = ApiContext(
        queries=platform.engine,
        keys=KeyRing.single("right"),
        version="1.2.3",
        status=dict,
        checks=list,
        level=lambda: 0,
        max_rows=100,
        max_body_bytes=10_000,
        operations_open=True,
    )
    driver = mount(app, build_api(context))
    assert app.web is driver
    driver.init_server()
    await driver.start_server()
    yield f"http://127.0.0.1:{app.conf.web_port}"
    await driver.stop_server()


async def test_routes(url: str) -> None:
    async with ClientSession() as session:
        async with session.get(f"{url}/") as response:
            assert (await response.json())["data"]["name"] == "k2"
        for path in ("/faust/", "/faust"):
            async with session.get(url + path) as response:
                assert response.status == 200
                assert str(response.url).endswith("/faust/")
                assert isinstance(await response.json(), dict)
        for path in ("/faust/table/", "/faust/router/"):
            async with session.get(url + path) as response:
                assert response.status == 200, path
        async with session.get(f"{url}/v1/trades") as response:
            assert response.status == 401
        async with session.get(f"{url}/v1/trades", headers={"X-API-Key": "right"}) as response:
            assert (await response.json())["data"] == []
        for path in ("/graph/", "/assignment/", "/router/"):
            async with session.get(url + path, headers={"X-API-Key": "right"}) as response:
                assert response.status == 404, path


ENDLESS = "SELECT count(*) FROM range(100000000) a, range(1000000) b WHERE a.range < b.range"


async def test_a_client_that_goes_away_stops_its_query(url: str, platform: Platform) -> None:
    def cancelled() -> float:
        labels = {"query_type": "sql", "status": "cancelled"}
        return REGISTRY.get_sample_value("k2_query_executions_total", labels) or 0.0

    async def until(done: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not done():  # noqa: ASYNC110 - a thread ends
                await asyncio.sleep(0.01)

    before = cancelled()
    async with ClientSession(headers={"X-API-Key": "right"}) as session:
        asking = asyncio.create_task(session.post(f"{url}/v1/sql", json={"sql": ENDLESS}))
        await until(lambda: platform.engine.stats().running == 1)
        # Ending the request closes its connection, as a client does that is gone.
        asking.cancel()
        # The slot is given back by the thread that ran the query: so DuckDB has stopped.
        await until(lambda: platform.engine.stats().running == 0)
    assert cancelled() == before + 1
