"""The degradation level: what it is, why, what it puts off, and holding it by hand."""

from __future__ import annotations

from aiohttp import web

from k2.cluster import shed_by_tier, totals
from k2.degradation.override import Override
from k2.web.context import CONTEXT, ApiContext, DegradationDesk
from k2.web.envelope import answer
from k2.web.models import HoldRequest
from k2.web.types import Request


async def level(request: web.Request, _given: Request) -> web.Response:
    """GET /v1/degradation: level, reason, what holds it, and the last changes."""
    return answer(request, _facts(request.config_dict[CONTEXT]))


async def hold(request: web.Request, given: HoldRequest) -> web.Response:
    """POST /v1/degradation: hold a level for a while; all workers follow within a second."""
    context = request.config_dict[CONTEXT]
    desk = _desk(context)
    override = Override.of(given.level, given.minutes, given.reason, given.by, context.now_us())
    await desk.set_override(override)
    return answer(request, {"override": override.facts()})


async def release(request: web.Request, _given: Request) -> web.Response:
    """POST /v1/degradation/clear: let the level go."""
    await _desk(request.config_dict[CONTEXT]).set_override(None)
    return answer(request, {"override": None})


async def shed(request: web.Request, _given: Request) -> web.Response:
    """GET /v1/shed: what all workers have put off and will still store, and the ranges of this."""
    context = request.config_dict[CONTEXT]
    return answer(request, {**context.shed(), **_shed_totals(context)})


def _shed_totals(context: ApiContext) -> dict[str, object]:
    workers = context.workers()
    total = totals(workers)
    return {
        "workers": total["workers"],
        "pending": total["shed_pending"],
        "pending_by_tier": shed_by_tier(workers),
        "brought": total["shed_brought"],
    }


def _facts(context: ApiContext) -> dict[str, object]:
    desk = _desk(context)
    return {"level": desk.level.name, **desk.facts(), "history": desk.history()}


def _desk(context: ApiContext) -> DegradationDesk:
    assert context.degradation is not None, "the worker gives it"
    return context.degradation
