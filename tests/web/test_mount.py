"""K2's routes at the root of Faust's own web server, Faust's pages below /faust/."""

from __future__ import annotations

import faust
import pytest
from aiohttp import ClientSession

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
