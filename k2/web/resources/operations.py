"""What tells of the worker itself."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from k2.cluster import totals
from k2.settings import LOCAL_API_KEY
from k2.web import page as live_page
from k2.web.context import CONTEXT, ApiContext, Check, Health
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
    "workers": "/v1/workers",
    "health": "/health",
    "metrics": "/metrics",
    "faust": "/faust/",
}

#: How the checks of sessions are named.
_FEED: Final = "feed "
_POINTS: Final[Mapping[Health, int]] = {"healthy": 100, "degraded": 50, "unhealthy": 0}


async def index(request: web.Request, _given: Request) -> web.Response:
    """GET /: the live page for a browser; else what this is and where things are."""
    context = request.config_dict[CONTEXT]
    if live_page.wanted(request):
        # The key of the local environment is in the documentation, so the page may have it.
        return live_page.page(LOCAL_API_KEY if context.keys.find(LOCAL_API_KEY) else "")
    return answer(request, {"name": "k2", "version": context.version, "links": _LINKS})


async def status(request: web.Request, _given: Request) -> web.Response:
    """GET /v1/status: level, roles, lag, what a query would read now, and all workers' totals."""
    context = request.config_dict[CONTEXT]
    return answer(
        request,
        {
            **context.status(),
            "level": context.level(),
            "query": context.queries.status(),
            "cluster": totals(context.workers()),
        },
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
        "score": score(checks),
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
        "feeds": _feeds(context, checks),
    }
    return answer(request, data, status=200 if ready else 503)


def score(checks: Sequence[Check]) -> int:
    """0 to 100: the mean of the dependencies, the feeds counting as one; 0 when one is unhealthy.

    Else a log that is away would be nothing beside twenty feeds that are well.
    """
    if any(check.status == "unhealthy" for check in checks):
        return 0
    feeds = [_POINTS[check.status] for check in checks if check.name.startswith(_FEED)]
    found = [_POINTS[check.status] for check in checks if not check.name.startswith(_FEED)]
    return round(fmean([*found, *([fmean(feeds)] if feeds else [])] or [100]))


def _feeds(context: ApiContext, checks: Sequence[Check]) -> list[dict[str, Any]]:
    """How old the last frame of each session is; None: none came yet."""
    statuses = {check.name: check.status for check in checks}
    now_us = context.now_us()
    return [
        {
            "exchange": session["exchange"],
            "session": session["session"],
            "state": session["state"],
            "status": statuses.get(f"{_FEED}{session['session']}"),
            "last_frame_age_s": round(max(0, now_us - at_us) / 1e6, 3) if at_us else None,
        }
        for session in context.feeds()
        for at_us in [session["last_frame_us"]]
    ]


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
