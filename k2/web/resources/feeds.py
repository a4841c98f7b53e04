"""What feeds bring and what they missed."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from aiohttp import web

from k2.pipeline.gap_report import EVENTS_SQL, MAX_EVENTS, Gap, gaps_of
from k2.quality import of_exchange
from k2.web.context import CONTEXT
from k2.web.envelope import ROWS, answer, page
from k2.web.models import GapsRequest
from k2.web.types import Request


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
    """GET /v1/feeds: the sessions of this worker, and the open gaps of their exchanges."""
    found, more = await _gaps(request)
    ranges, ids = Counter[str](), Counter[str]()
    for gap in found:
        if gap.state == "open":
            ranges[gap.feed.exchange] += 1
            ids[gap.feed.exchange] += gap.missing.size()
    quality = request.config_dict[CONTEXT].quality()
    rows = [
        {
            **session,
            "quality": of_exchange(quality, exchange),
            "open_gaps": ranges[exchange],
            "missing_ids": ids[exchange],
        }
        for session in request.config_dict[CONTEXT].feeds()
        for exchange in [str(session["exchange"]).upper()]
    ]
    request[ROWS] = len(rows)
    return answer(request, rows, more=more)


async def _gaps(request: web.Request) -> tuple[list[Gap], dict[str, Any]]:
    found = await request.config_dict[CONTEXT].queries.sql(EVENTS_SQL, limit=MAX_EVENTS)
    # A platform that lost much has many events.
    gaps = await asyncio.to_thread(lambda: gaps_of(found.rows.to_pylist()))
    return gaps, {"as_of": found.as_of, "truncated": found.truncated}
