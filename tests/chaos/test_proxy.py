"""The proxy's faults as an HTTP client meets them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web

from k2.testing.proxy import Behaviour, TcpProxy


@dataclass
class Server:
    """What arrived at the server behind the proxy."""

    proxy: TcpProxy
    http: aiohttp.ClientSession
    posts: list[bytes] = field(default_factory=list)

    async def post(self, path: str, body: bytes = b"x") -> tuple[int, bytes]:
        url = f"http://127.0.0.1:{self.proxy.port}{path}"
        async with self.http.post(url, data=body) as answer:
            return answer.status, await answer.read()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector) as http:
        made = Server(TcpProxy(0), http)

        async def take(request: web.Request) -> web.Response:
            made.posts.append(await request.read())
            return web.Response(body=b"a" * 1_000)

        app = web.Application()
        app.router.add_post("/{path:.*}", take)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        made.proxy.target_port = runner.addresses[0][1]
        async with made.proxy:
            yield made
        await runner.cleanup()


async def test_it_forwards(server: Server) -> None:
    assert await server.post("/a", b"hello") == (200, b"a" * 1_000)
    assert server.posts == [b"hello"]


async def test_down_and_up_again(server: Server) -> None:
    server.proxy.behave(Behaviour(down=True))
    with pytest.raises(aiohttp.ClientError):
        await server.post("/a")
    assert server.posts == []
    server.proxy.behave()
    assert (await server.post("/a"))[0] == 200


async def test_an_error_without_reaching_the_server(server: Server) -> None:
    await server.post("/a")
    server.proxy.behave(Behaviour(error_500=True))
    assert (await server.post("/a"))[0] == 500
    assert len(server.posts) == 1


async def test_an_answer_is_lost_after_the_request_took_effect(server: Server) -> None:
    state = Behaviour(swallow=b"POST /commit", swallow_left=1)
    server.proxy.behave(state)
    assert (await server.post("/other"))[0] == 200
    with pytest.raises(aiohttp.ClientError):
        await server.post("/commit")
    assert len(server.posts) == 2, "the request arrived"
    assert state.swallowed == 1
    assert (await server.post("/commit"))[0] == 200, "once only"


async def test_an_answer_is_torn(server: Server) -> None:
    server.proxy.behave(Behaviour(tear_after=300))
    with pytest.raises(aiohttp.ClientError):
        await server.post("/a")
    assert (await server.post("/a"))[0] == 200
