"""The HTTP interface as one aiohttp application, independent of Faust."""

from __future__ import annotations

from aiohttp import web

from k2.web import middleware, page
from k2.web.access import access
from k2.web.context import CONTEXT, ApiContext
from k2.web.endpoints import ENDPOINTS
from k2.web.resources.operations import faust_pages
from k2.web.resources.stream import READERS, Readers, close_streams


def build_api(context: ApiContext) -> web.Application:
    """All routes of K2 behind their middlewares."""
    app = web.Application(
        middlewares=[middleware.envelope, access, middleware.breaker],
        client_max_size=context.max_body_bytes,
    )
    app[CONTEXT] = context
    app[READERS] = Readers()
    app.on_shutdown.append(close_streams)
    app.on_response_prepare.append(middleware.finish_headers)
    for endpoint in ENDPOINTS:
        # HEAD would run the whole query for nothing.
        app.router.add_route(endpoint.method, endpoint.path, endpoint.__call__)
    app.router.add_get("/faust", faust_pages)
    app.router.add_get("/page/{name}", page.part)
    return app
