"""The HTTP interface as one aiohttp application, independent of Faust."""

from __future__ import annotations

from aiohttp import web

from k2.web import handlers, middleware, page
from k2.web.context import CONTEXT, ApiContext


def build_api(context: ApiContext) -> web.Application:
    """All routes of K2 behind their middlewares."""
    app = web.Application(
        middlewares=[middleware.envelope, middleware.api_key, middleware.breaker],
        client_max_size=context.max_body_bytes,
    )
    app[CONTEXT] = context
    app.add_routes(
        [
            web.get("/", handlers.index),
            web.get("/page/{name}", page.part),
            web.get("/health", handlers.health),
            web.get("/health/live", handlers.live),
            web.get("/health/ready", handlers.health),
            web.get("/metrics", handlers.metrics),
            web.get("/v1/trades", handlers.trades),
            web.get("/v1/quotes", handlers.quotes),
            web.get("/v1/symbols", handlers.symbols),
            web.get("/v1/sql", handlers.sql_get),
            web.post("/v1/sql", handlers.sql_post),
            web.get("/v1/status", handlers.status),
            web.get("/faust", handlers.faust_pages),
        ]
    )
    return app
