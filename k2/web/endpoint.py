"""An endpoint: what it takes, what it gives, who may ask; served and documented from one value."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import orjson
from aiohttp import web
from multidict import MultiMapping
from pydantic import ValidationError

from k2.errors import InvalidParameter
from k2.web.types import Request

Scope = Literal["read", "sql", "admin"]
Handler = Callable[[web.Request, Any], Awaitable[web.StreamResponse]]

_BODY: Final = "a JSON object"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method and path.

    `takes`: the model of its parameters (GET: query, POST: JSON body; names in the path come from
    there). `gives`: JSON schema of `data`. `scope`: what a key must have; None: open to all.
    `formats`: rows may also be had as CSV, Parquet and Arrow. `statuses`: further answers.
    """

    method: Literal["GET", "POST"]
    path: str
    summary: str
    tag: str
    handler: Handler
    takes: type[Request] = Request
    gives: Mapping[str, Any] = field(default_factory=dict)
    scope: Scope | None = "read"
    formats: bool = False
    statuses: Mapping[int, str] = field(default_factory=dict)
    media_type: str = "application/json"

    @property
    def path_names(self) -> list[str]:
        return re.findall(r"{(\w+)}", self.path)

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        """Parse, then answer. Raises `InvalidParameter`."""
        if self.method == "GET":
            values: dict[str, Any] = dict(query_values(request.query, self.takes))
        else:
            values = await _body(request)
        for name in self.path_names:
            if name in values:
                raise InvalidParameter(name, values[name], f"{name} in the path only")
            values[name] = request.match_info[name]
        return await self.handler(request, parsed(self.takes, values))


def query_values(query: MultiMapping[str], model: type[Request]) -> dict[str, str]:
    """Query parameters by name. Raises `InvalidParameter` for unknown, repeated, empty ones."""
    values: dict[str, str] = {}
    for name, value in query.items():
        if name in values:
            raise InvalidParameter(name, value, "one value per parameter")
        if not value and name in model.model_fields:
            raise InvalidParameter(name, value, "a value; leave the parameter out instead")
        values[name] = value
    return values


def parsed(model: type[Request], values: Mapping[str, Any]) -> Request:
    """`values` as a model. Raises `InvalidParameter` naming the first that is wrong."""
    try:
        return model.model_validate(values)
    except ValidationError as exc:
        first = exc.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "body"
        raise InvalidParameter(name, first.get("input"), _allowed(model, first)) from exc


def _allowed(model: type[Request], error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return f"the parameters {', '.join(model.model_fields) or '(none)'}"
    if error["type"] == "missing":
        return "a value; this parameter is required"
    expected = error.get("ctx", {}).get("expected")
    return f"one of {expected}" if expected else str(error["msg"])


async def _body(request: web.Request) -> dict[str, Any]:
    if request.query:
        name, value = next(iter(request.query.items()))
        raise InvalidParameter(name, value, "parameters in the JSON body only")
    raw = await request.read()
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        raise InvalidParameter("body", raw[:100], _BODY) from exc
    if not isinstance(body, dict):
        raise InvalidParameter("body", body, _BODY)
    return body
