"""The shape of every answer: `{success, data, pagination, meta}` or `{success, detail, meta}`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, Final

import orjson
from aiohttp import web

#: Set by the middleware on every request.
CORRELATION_ID: Final = web.RequestKey("k2_correlation_id", str)
#: Set by handlers that answer with rows.
ROWS: Final = web.RequestKey("k2_rows", int)


def meta(request: web.Request, **more: Any) -> dict[str, Any]:
    now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
    return {
        "correlation_id": request[CORRELATION_ID],
        "timestamp": now.replace("+00:00", "Z"),
        **more,
    }


def answer(
    request: web.Request,
    data: Any,
    *,
    pagination: Mapping[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """A good answer. `data` may be an `orjson.Fragment` that was encoded elsewhere."""
    body: dict[str, Any] = {"success": status < 400, "data": data}
    if pagination is not None:
        body["pagination"] = pagination
    body["meta"] = meta(request, **(more or {}))
    return json_response(body, status, {"Cache-Control": "no-store", **(headers or {})})


def failure(
    request: web.Request,
    status: int,
    error: str,
    message: str,
    *,
    details: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """A refused or failed request. `details`: facts such as the parameter at fault."""
    detail = {**(details or {}), "error": error, "message": message}
    body = {"success": False, "detail": detail, "meta": meta(request)}
    return json_response(body, status, {"Cache-Control": "no-store", **(headers or {})})


def page(limit: int, has_more: bool, cursor: str | None = None, offset: int = 0) -> dict[str, Any]:
    """Pagination. How many rows there are in all is not counted."""
    return {
        "limit": limit,
        "offset": offset,
        "total": None,
        "has_more": has_more,
        "next_cursor": cursor,
    }


def json_response(
    body: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=orjson.dumps(body, default=str),
        status=status,
        content_type="application/json",
        headers=dict(headers or {}),
    )
