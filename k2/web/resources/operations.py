"""What tells of the worker itself."""

from __future__ import annotations

import asyncio

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from k2.settings import LOCAL_API_KEY
from k2.web import page as live_page
from k2.web.context import CONTEXT
from k2.web.envelope import answer
from k2.web.types import Request

_LINKS = {
    "documentation": "/docs",
    "openapi": "/openapi.json",
    "trades": "/v1/trades",
    "quotes": "/v1/quotes",
    "latest": "/v1/latest",
    "symbols": "/v1/symbols",
    "stream": "/v1/stream",
    "sql": "/v1/sql",
    "status": "/v1/status",
    "health": "/health",
    "metrics": "/metrics",
    "faust": "/faust/",
}


async def index(request: web.Request, _given: Request) -> web.Response:
    """GET /: the live page for a browser; else what this is and where things are."""
    context = request.config_dict[CONTEXT]
    if live_page.wanted(request):
        # The key of the local environment is in the documentation, so the page may have it.
        return live_page.page(LOCAL_API_KEY if context.keys.find(LOCAL_API_KEY) else "")
    return answer(request, {"name": "k2", "version": context.version, "links": _LINKS})


async def status(request: web.Request, _given: Request) -> web.Response:
    """GET /v1/status: level, roles, lag, and what a query would read now."""
    context = request.config_dict[CONTEXT]
    return answer(
        request,
        {**context.status(), "level": context.level(), "query": context.queries.status()},
    )


async def health(request: web.Request, _given: Request) -> web.Response:
    """GET /health, /health/ready: 503 unless every dependency can serve."""
    context = request.config_dict[CONTEXT]
    checks = context.checks()
    found = {check.status for check in checks}
    overall = next(s for s in ("unhealthy", "degraded", "healthy") if s in {*found, "healthy"})
    ready = overall != "unhealthy"
    data = {
        "status": overall,
        "live": True,
        "ready": ready,
        "version": context.version,
        "dependencies": [
            {
                "name": check.name,
                "status": check.status,
                "latency_ms": None if check.latency_ms is None else round(check.latency_ms, 2),
                "message": check.message,
            }
            for check in checks
        ],
    }
    return answer(request, data, status=200 if ready else 503)


async def live(request: web.Request, _given: Request) -> web.Response:
    """GET /health/live: the process answers."""
    return answer(request, {"status": "healthy", "live": True})


async def metrics(_request: web.Request, _given: Request) -> web.Response:
    """GET /metrics: Prometheus text."""
    body = await asyncio.to_thread(generate_latest)
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def faust_pages(_request: web.Request) -> web.Response:
    """GET /faust: Faust's pages are at /faust/."""
    raise web.HTTPPermanentRedirect("/faust/")
