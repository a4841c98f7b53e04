"""Who may ask: keys with scopes and rates, and which other origins browsers may ask from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from k2.web.context import CONTEXT
from k2.web.endpoint import Endpoint
from k2.web.envelope import failure
from k2.web.keys import ApiKey
from k2.web.rates import Verdict

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: The name of the key that asked; on the log line of the request.
KEY_NAME: Final = web.RequestKey("k2_key_name", str)
#: What the key's bucket said.
VERDICT: Final = web.RequestKey("k2_verdict", Verdict)
#: What scripts of other origins may read and send.
_EXPOSED: Final = (
    "ETag, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, Retry-After, X-Correlation-ID, "
    "X-K2-As-Of, X-K2-Partial, X-Next-Cursor, X-Record-Count"
)
_PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "X-API-Key, Content-Type, X-Correlation-ID, If-None-Match",
    "Access-Control-Max-Age": "600",
}


@web.middleware
async def access(request: web.Request, handler: Handler) -> web.StreamResponse:
    """401 without X-API-Key, 403 with a wrong one or one that may not, 429 above its rate."""
    if request.method == "OPTIONS" and cross_origin(request):
        return web.Response(status=204, headers=_PREFLIGHT)
    refused = None if _is_open(request) else _refused(request)
    return refused or await handler(request)


def _refused(request: web.Request) -> web.Response | None:
    given = request.headers.get("X-API-Key")
    if given is None:
        return failure(
            request,
            401,
            "missing_api_key",
            "send the key in the header X-API-Key",
            headers={"WWW-Authenticate": "X-API-Key"},
        )
    key = request.config_dict[CONTEXT].keys.find(given)
    if key is None:
        return failure(request, 403, "wrong_api_key", "the key in X-API-Key is not valid")
    request[KEY_NAME] = key.name
    scope = _scope(request)
    if scope not in (None, *key.scopes):
        message = f"the key {key.name!r} has no scope {scope!r}; make one that has it with `k2 key`"
        return failure(request, 403, "missing_scope", message, details={"scope": scope})
    return _too_often(request, key)


def _too_often(request: web.Request, key: ApiKey) -> web.Response | None:
    if not key.per_minute:
        return None
    verdict = request.config_dict[CONTEXT].rates.take(key.name, key.per_minute)
    request[VERDICT] = verdict
    if verdict.allowed:
        return None
    message = f"the key {key.name!r} may ask {key.per_minute} times a minute"
    headers = {"Retry-After": str(verdict.retry_s)}
    return failure(request, 429, "rate_limited", message, headers=headers)


def cross_origin(request: web.Request) -> dict[str, str]:
    """Headers for a browser's script from an allowed origin; none for any other."""
    origin = request.headers.get("Origin")
    if origin is None or origin not in request.config_dict[CONTEXT].cors_origins:
        return {}
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": _EXPOSED,
        "Vary": "Origin, Accept, X-API-Key",
    }


def _is_open(request: web.Request) -> bool:
    path = request.path
    if path.startswith("/page/"):
        return True
    if request.config_dict[CONTEXT].operations_open and f"{path}/".startswith("/faust/"):
        return True
    endpoint = _endpoint(request)
    return endpoint is not None and endpoint.scope is None


def _scope(request: web.Request) -> str | None:
    """What the key must have. Nothing there, or another method: any key learns that."""
    if request.match_info.http_exception is not None:
        return None
    endpoint = _endpoint(request)
    return "admin" if endpoint is None else endpoint.scope


def _endpoint(request: web.Request) -> Endpoint | None:
    found = getattr(request.match_info.handler, "__self__", None)
    return found if isinstance(found, Endpoint) else None
