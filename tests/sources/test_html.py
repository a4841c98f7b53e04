"""An exchange that answers a web page: said as it is, tried again, and nothing taken from it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from k2.errors import SourceError
from k2.sources.connector import AiohttpConnector
from k2.sources.history import HISTORIES
from k2.sources.page import Wanted
from k2.sources.session import Session, SessionConfig
from k2.steps.backfill import BackfillStep
from k2.testing.clock import eventually
from tests.sources.cases import CASES

PAGE = "<html><head><title>502 Bad Gateway</title></head><body>cloud</body></html>"


@asynccontextmanager
async def website(status: int) -> AsyncIterator[str]:
    """host:port of a server that answers everything with a page."""

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html", status=status)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", page)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield "{}:{}".format(*runner.addresses[0])
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("status", [200, 502])
@pytest.mark.parametrize("name", sorted(CASES))
async def test_a_page_instead_of_a_socket_is_told_and_tried_again(
    name: tuple[str, str], status: int
) -> None:
    case = CASES[name]
    (spec,) = case.exchange.sessions(case.settings)
    async with website(status) as place:
        session = Session(
            case.exchange.protocol(spec, case.settings),
            SessionConfig((f"ws://{place}",), reconnect_initial_s=0.001, reconnect_max_s=0.01),
            AiohttpConnector(),
        )
        task = asyncio.create_task(session.run())
        await eventually(lambda: session.stats.reconnects["connect_failed"] > 2, limit_s=20.0)
        await session.close()
        await task
    assert f"answered {status} instead of opening a WebSocket" in session.stats.last_error
    assert session.stats.frames == 0


@pytest.mark.parametrize("status", [200, 502])
@pytest.mark.parametrize("name", sorted(HISTORIES), ids="-".join)
async def test_a_page_instead_of_a_history_is_told(name: str, status: int) -> None:
    step = BackfillStep(list, None, None, None)  # type: ignore[arg-type]
    async with website(status) as place, aiohttp.ClientSession() as http:
        history = HISTORIES[name]
        url = f"http://{place}{history.url(Wanted('X', 1, 2))}"
        with pytest.raises(SourceError, match=r"answered 502|the history is no"):
            await step._ask(http, url, history, "X")
