"""What feeds bring and what they missed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import structlog
from aiohttp import web

from k2.errors import K2Error
from k2.pipeline.gap_report import EVENTS_SQL, MAX_EVENTS, Gap, gaps_of
from k2.quality import of_exchange
from k2.web.context import CONTEXT, ApiContext
from k2.web.envelope import ROWS, answer, page
from k2.web.models import GapsRequest
from k2.web.types import Request

log = structlog.get_logger(__name__)


async def gaps(request: web.Request, given: GapsRequest) -> web.StreamResponse:
    """GET /v1/gaps: ranges of ids that never came, or came after all; the newest first."""
    found, more = await _gaps(request)
    rows = [
        gap.as_json()
        for gap in reversed(found)
        if given.symbol in {None, gap.feed.symbol}
        and given.exchange in {None, gap.feed.exchange}
        and given.state in {"all", gap.state}
    ]
    request[ROWS] = min(len(rows), given.limit)
    return answer(
        request,
        rows[: given.limit],
        pagination=page(given.limit, len(rows) > given.limit),
        more=more,
    )


async def feeds(request: web.Request, _given: Request) -> web.StreamResponse:
    """GET /v1/feeds: the sessions of all workers, and the open gaps of their exchanges."""
    try:
        found, more = await _gaps(request)
    except K2Error as exc:
        # A lake that does not answer hides gaps, but not whether the exchanges do.
        log.warning("gaps_unknown", error=exc.message)
        found, more = None, {}
    counted = _open(found)
    context = request.config_dict[CONTEXT]
    quality = context.quality()
    rows = [
        {
            **session,
            "quality": of_exchange(quality, exchange),
            **counted(exchange),
        }
        for session in _sessions(context)
        for exchange in [str(session["exchange"]).upper()]
    ]
    request[ROWS] = len(rows)
    return answer(request, rows, more=more)


def _open(gaps: Iterable[Gap] | None) -> Callable[[str], dict[str, int | None]]:
    """Open ranges and the ids in them, by exchange; None: unknown."""
    if gaps is None:
        return lambda _exchange: {"open_gaps": None, "missing_ids": None}
    ranges, ids = Counter[str](), Counter[str]()
    for gap in gaps:
        if gap.state == "open":
            ranges[gap.feed.exchange] += 1
            ids[gap.feed.exchange] += gap.missing.size()
    return lambda exchange: {"open_gaps": ranges[exchange], "missing_ids": ids[exchange]}


def _sessions(context: ApiContext) -> Iterator[dict[str, Any]]:
    """Of this worker in full; of the others what their summaries have room for."""
    workers = context.workers()
    here = next((one["worker"] for one in workers if one["here"]), None)
    for session in context.feeds():
        yield {"worker": here, "symbol_count": len(session["symbols"]), **session}
    for one in workers:
        if not one["here"]:
            for session in one.get("sessions", ()):
                yield {"worker": one["worker"], "url": None, "symbols": None, **session}


async def _gaps(request: web.Request) -> tuple[list[Gap], dict[str, Any]]:
    found = await request.config_dict[CONTEXT].queries.sql(EVENTS_SQL, limit=MAX_EVENTS)
    # A platform that lost much has many events.
    gaps = await asyncio.to_thread(lambda: gaps_of(found.rows.to_pylist()))
    return gaps, {"as_of": found.as_of, "truncated": found.truncated}
