"""The live page at `/`: three static files, no build step, nothing from elsewhere."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from aiohttp import web

_TYPES: Final = {"style.css": "text/css", "app.js": "text/javascript"}
#: Only what this worker serves, and only its own interface is asked.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def wanted(request: web.Request) -> bool:
    """True when a browser asks; programs that ask for JSON, or for anything, get JSON."""
    return "text/html" in request.headers.get("Accept", "")


def page(key: str) -> web.Response:
    """The page; `key` is put into it, so it must be one that is no secret."""
    text = _read("index.html").replace("{key}", key)
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache", "Vary": "Accept"}
    return web.Response(text=text, content_type="text/html", headers=headers)


async def part(request: web.Request) -> web.Response:
    """GET /page/{name}: what the page is made of."""
    name = request.match_info["name"]
    if name not in _TYPES:
        raise web.HTTPNotFound
    headers = {"Cache-Control": "no-cache"}
    return web.Response(text=_read(name), content_type=_TYPES[name], headers=headers)


def _read(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
