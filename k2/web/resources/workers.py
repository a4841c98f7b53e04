"""The workers of this app, as far as they tell each other."""

from __future__ import annotations

from aiohttp import web

from k2.web.context import CONTEXT
from k2.web.envelope import ROWS, answer
from k2.web.types import Request


async def workers(request: web.Request, _given: Request) -> web.Response:
    """GET /v1/workers: this worker as it is now, then what the others said of themselves last."""
    found = request.config_dict[CONTEXT].workers()
    request[ROWS] = len(found)
    return answer(request, found)
