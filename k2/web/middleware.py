"""What every request passes: correlation id, access log, errors, key, breaker."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final

import structlog
from aiohttp import ClientConnectionResetError, web

from k2 import metrics
from k2.errors import (
    InvalidParameter,
    K2Error,
    LakeError,
    NotFoundError,
    Overloaded,
    QueryError,
    QueryTimeout,
    SnapshotNotFoundError,
)
from k2.tracing import TRACING
from k2.web.access import KEY_NAME, VERDICT, cross_origin
from k2.web.context import CONTEXT, RequestDone
from k2.web.envelope import CORRELATION_ID, ROWS, failure

log = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_HEADER: Final = "X-Correlation-ID"
_CORRELATION: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_BREAK_LEVEL: Final = 4
_BREAK_RETRY_S: Final = 30
_SECURITY: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    # Which software in which version answers is nobody's business.
    "Server": "K2",
}
#: The code of the error a request failed with.
_ERROR: Final = web.RequestKey("k2_error", str)
#: Nobody waited for the answer; the number is nginx's.
_CLIENT_LEFT: Final = 499
#: Asked by probes, scrapers and screens.
_WATCHED: Final = frozenset(
    {"/health", "/health/live", "/health/ready", "/metrics", "/v1/status", "/v1/workers"}
)
#: Answered at CIRCUIT_BREAK and by every worker, because they tell what is going on. Gaps are read
#: from the lake alone, which needs no hot rows.
_ALWAYS: Final = frozenset(
    {
        *("/v1/status", "/v1/workers", "/v1/shed", "/v1/feeds", "/v1/gaps"),
        *("/v1/degradation", "/v1/degradation/clear"),
    }
)


@web.middleware
async def envelope(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Outermost: gives the request its id, logs it, and turns every failure into an answer."""
    given = request.headers.get(_HEADER, "")
    correlation_id = given if _CORRELATION.fullmatch(given) else uuid.uuid4().hex[:16]
    request[CORRELATION_ID] = correlation_id
    with structlog.contextvars.bound_contextvars(correlation_id=correlation_id):
        parent = request.headers.get("traceparent", "").encode()
        with TRACING.span(
            f"{request.method} {_route(request)}",
            (parent,) if parent else (),
            correlation_id=correlation_id,
        ):
            return await _counted(request, handler)


async def finish_headers(request: web.Request, response: web.StreamResponse) -> None:
    """What every answer carries; streamed ones send their headers before the middlewares end."""
    for name, value in _SECURITY.items():
        response.headers.setdefault(name, value)
    response.headers["Server"] = _SECURITY["Server"]
    if CORRELATION_ID in request:
        response.headers[_HEADER] = request[CORRELATION_ID]
    if (verdict := request.get(VERDICT)) is not None:
        response.headers.update(verdict.headers())
    response.headers.update(cross_origin(request))


async def _counted(request: web.Request, handler: Handler) -> web.StreamResponse:
    began = time.perf_counter()
    # Cancelled, it is a client that left.
    status = _CLIENT_LEFT
    with metrics.HTTP_IN_PROGRESS.labels(request.method, _route(request)).track_inprogress():
        try:
            response = await _answered(request, handler)
            status = response.status
        finally:
            _done(request, status, time.perf_counter() - began)
    return response


def _done(request: web.Request, status: int, duration_s: float) -> None:
    route = _route(request)
    rows = request.get(ROWS, 0)
    # What watches ask all the time is worth a line only when it goes wrong; that a worker is not
    # ready yet is what a probe asks for, and the worker's own lines say why.
    watched = request.path in _WATCHED and (status < 400 or _is_not_ready(request.path, status))
    (log.debug if watched else log.info)(
        "http_request",
        method=request.method,
        path=request.path,
        key=request.get(KEY_NAME),
        status=status,
        duration_ms=round(duration_s * 1_000, 2),
        rows=rows,
        remote=request.remote,
    )
    if status >= 400:
        metrics.HTTP_ERRORS.labels(request.method, route, _error_type(request, status)).inc()
    context = request.config_dict[CONTEXT]
    context.observe(RequestDone(request.method, route, status, duration_s, rows))


def _route(request: web.Request) -> str:
    """The pattern of the path, so that there are few."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "(none)"


def _is_not_ready(path: str, status: int) -> bool:
    return status == 503 and path.startswith("/health")


def _error_type(request: web.Request, status: int) -> str:
    if status == _CLIENT_LEFT:
        return "client_left"
    return request.get(_ERROR) or HTTPStatus(status).name.lower()


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as exc:
        return _http_failure(request, exc)
    except K2Error as exc:
        return _k2_failure(request, exc)
    except ClientConnectionResetError:
        # It left between two pieces of its answer.
        return web.Response(status=_CLIENT_LEFT)
    except Exception:
        # Whatever it is, the caller learns only the id under which the log tells more.
        log.exception("http_request_failed", method=request.method, path=request.path)
        return _failed(
            request, 500, "internal", "the request failed; quote the correlation id when reporting"
        )


def _failed(
    request: web.Request, status: int, error: str, message: str, **more: Any
) -> web.Response:
    request[_ERROR] = error
    return failure(request, status, error, message, **more)


def _http_failure(request: web.Request, exc: web.HTTPException) -> web.StreamResponse:
    if exc.status < 400:
        # aiohttp takes exceptions only when they are raised.
        return web.Response(status=exc.status, headers={"Location": exc.headers["Location"]})
    if isinstance(exc, web.HTTPNotFound):
        return _failed(request, 404, "not_found", f"there is nothing at {request.path}")
    if isinstance(exc, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(exc.allowed_methods))
        message = f"{request.method} is not allowed at {request.path}; allowed: {allowed}"
        return _failed(request, 405, "method_not_allowed", message, headers={"Allow": allowed})
    if isinstance(exc, web.HTTPRequestEntityTooLarge):
        metrics.HTTP_TOO_LARGE.labels(request.method, _route(request)).inc()
        limit = request.config_dict[CONTEXT].max_body_bytes
        return _failed(request, 413, "body_too_large", f"the request body is above {limit} bytes")
    return _failed(request, exc.status, "http", exc.reason)


def _k2_failure(request: web.Request, exc: K2Error) -> web.Response:
    status, headers = 500, {}
    match exc:
        case InvalidParameter():
            status = 400 if exc.details["parameter"] in ("sql", "body") else 422
        case QueryTimeout():
            status = 504
        case NotFoundError() | SnapshotNotFoundError():
            status = 404
        case QueryError():
            status = 400
        case Overloaded():
            status = int(exc.details.get("status", 429))
            headers["Retry-After"] = str(exc.details.get("retry_after_s", 1))
        case LakeError():
            status, headers["Retry-After"] = 503, str(exc.details.get("retry_after_s", 5))
    if isinstance(exc, QueryTimeout | Overloaded):
        # Expected under load; nothing is broken.
        log.warning("http_request_refused", error=exc.code, message=exc.message, status=status)
    elif status >= 500:
        log.error("http_request_failed", error=exc.code, message=exc.message, exc_info=exc)
    if status == 500:
        return _failed(
            request, 500, "internal", "the request failed; quote the correlation id when reporting"
        )
    return _failed(request, status, exc.code, exc.message, details=exc.details, headers=headers)


@web.middleware
async def breaker(request: web.Request, handler: Handler) -> web.StreamResponse:
    """At CIRCUIT_BREAK the data endpoints refuse work, so that the backlog gets the machine."""
    context = request.config_dict[CONTEXT]
    data = request.path.startswith("/v1/") and request.path not in _ALWAYS
    if data and not context.answers_queries:
        raise Overloaded(
            "this worker does not have the role `query`; ask one that has it in K2_ROLES",
            retry_after_s=_BREAK_RETRY_S,
            status=503,
        )
    if data and context.level() >= _BREAK_LEVEL:
        raise Overloaded(
            "the platform is at degradation level CIRCUIT_BREAK and answers no data queries; "
            f"try again in {_BREAK_RETRY_S} s",
            retry_after_s=_BREAK_RETRY_S,
            status=503,
        )
    return await handler(request)
