"""/openapi.json, and /docs: the same document as one page of plain HTML, without any script."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from html import escape
from typing import Any, Final

import orjson
from aiohttp import web

from k2.web.context import CONTEXT
from k2.web.envelope import json_response
from k2.web.types import Request

_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
code,pre{font-family:ui-monospace,monospace;font-size:.92em}pre{background:#f4f4f4;padding:.6rem;
overflow:auto}details{border:1px solid #ddd;border-radius:4px;margin:.4rem 0;padding:.4rem .8rem}
summary{cursor:pointer}table{border-collapse:collapse;width:100%}td,th{text-align:left;
border-bottom:1px solid #eee;padding:.2rem .6rem .2rem 0;vertical-align:top}.get{color:#06c}
.post{color:#080}
"""
#: The page has no script and loads nothing; only its own style is let through.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
_EXAMPLES: Final = {
    "symbol": "BTCUSDT", "symbols": "BTCUSDT,ETHUSDT", "exchange": "BINANCE", "timeframe": "1m",
    "date": "2024-08-08", "sql": "SELECT 1", "start_time": "2024-08-08T00:00:00Z",
    "end_time": "2024-08-09T00:00:00Z", "interval": "1min", "metrics": "vwap", "id": "1",
}  # fmt: skip


@functools.cache
def _document(version: str) -> dict[str, Any]:
    from k2.web.endpoints import ENDPOINTS, SCHEMAS  # noqa: PLC0415  they name these handlers
    from k2.web.openapi import openapi  # noqa: PLC0415

    return openapi(ENDPOINTS, SCHEMAS, version)


async def document(request: web.Request, _given: Request) -> web.Response:
    """GET /openapi.json."""
    found = _document(request.config_dict[CONTEXT].version)
    return json_response(found, headers={"Cache-Control": "public, max-age=300"})


async def page(request: web.Request, _given: Request) -> web.Response:
    """GET /docs."""
    body = render(_document(request.config_dict[CONTEXT].version))
    return web.Response(
        text=body,
        content_type="text/html",
        headers={"Content-Security-Policy": _POLICY, "Cache-Control": "public, max-age=300"},
    )


def render(document: Mapping[str, Any]) -> str:
    """The document as HTML."""
    by_tag: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            by_tag.setdefault(operation["tags"][0], []).append(_operation(path, method, operation))
    info = document["info"]
    parts = "".join(f"<h2>{escape(tag)}</h2>{''.join(shown)}" for tag, shown in by_tag.items())
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>"
        f"<p>{escape(info['description'])} The document itself: "
        f'<a href="/openapi.json">/openapi.json</a>.</p>{parts}</html>'
    )


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> str:
    rows = [
        _row(one["name"], one["schema"], one["required"], one.get("description", ""))
        for one in operation.get("parameters", ())
    ]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    schema = body.get("schema", {})
    for name, shape in schema.get("properties", {}).items():
        meaning = shape.get("description", "")
        rows.append(_row(name, shape, name in schema.get("required", ()), meaning))
    table = f"<table><tr><th>name<th>type<th>meaning</tr>{''.join(rows)}</table>" if rows else ""
    statuses = ", ".join(operation["responses"])
    return (
        f"<details><summary><code class={method}>{method.upper()} {escape(path)}</code> "
        f"{escape(operation['summary'])}</summary><p>{escape(operation.get('description', ''))}</p>"
        f"{table}<p>Answers: {statuses}</p><pre>{escape(_curl(path, method, operation))}</pre>"
        "</details>"
    )


def _row(name: str, shape: Mapping[str, Any], required: bool, meaning: str) -> str:
    star = " *" if required else ""
    return (
        f"<tr><td><code>{escape(name)}{star}</code><td>{escape(_type(shape))}"
        f"<td>{escape(meaning)}</tr>"
    )


def _type(shape: Mapping[str, Any]) -> str:
    if "anyOf" in shape:
        return " or ".join(_type(one) for one in shape["anyOf"] if one.get("type") != "null")
    if "enum" in shape:
        return " | ".join(map(str, shape["enum"]))
    text = str(shape.get("format", shape.get("type", "object")))
    if shape.get("type") == "array":
        text = f"list of {_type(shape.get('items', {}))}"
    if "minimum" in shape and "maximum" in shape:
        text += f" {shape['minimum']}-{shape['maximum']}"
    if "default" in shape and shape["default"] is not None:
        text += f" ({shape['default']})"
    return text


def _curl(path: str, method: str, operation: Mapping[str, Any]) -> str:
    key = '-H "X-API-Key: $K2_API_KEY" ' if "security" in operation else ""
    for name, value in _EXAMPLES.items():
        path = path.replace(f"{{{name}}}", value)
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    if method == "post":
        body = {name: _example(name) for name in schema["schema"]["required"]}
        return f"curl {key}localhost:8000{path} --json '{orjson.dumps(body).decode()}'"
    needed = [
        f"{one['name']}={_EXAMPLES.get(one['name'], '')}".replace(" ", "%20")
        for one in operation.get("parameters", ())
        if one["required"] and one["in"] == "query"
    ]
    query = f"?{'&'.join(needed)}" if needed else ""
    return f"curl {key}'localhost:8000{path}{query}'"


def _example(name: str) -> Any:
    value = _EXAMPLES.get(name, "")
    return value.split(",") if name in ("symbols", "metrics") else value
