"""K2's HTTP interface inside Faust's web server: ours at the root, Faust's pages at /faust/."""

from __future__ import annotations

from typing import Any, ClassVar

import faust
from aiohttp import web
from aiohttp.web import AppRunner
from faust.web.drivers.aiohttp import Web

#: Faust's pages keep their views and move below this prefix.
PREFIX = "/faust"


class K2Web(Web):
    """Faust's aiohttp driver around K2's application."""

    default_blueprints: ClassVar = [
        (f"{PREFIX}/router", "faust.web.apps.router:blueprint"),
        (f"{PREFIX}/table", "faust.web.apps.tables.blueprint"),
        (f"{PREFIX}/graph", "faust.web.apps.graph:blueprint"),
        (PREFIX, "faust.web.apps.stats:blueprint"),
    ]
    # Always the pages above: which of them are served must not depend on Faust's debug flag.
    production_blueprints: ClassVar[list[tuple[str, str]]] = []
    debug_blueprints: ClassVar[list[tuple[str, str]]] = []
    blueprint_flags: ClassVar[dict[str, str]] = {}

    def __init__(self, app: faust.App, api: web.Application, **kwargs: Any) -> None:
        super().__init__(app, **kwargs)
        self.web_app = api
        self._runner = AppRunner(api, access_log=None)


def mount(app: faust.App, api: web.Application) -> K2Web:
    """Make `api` the web server of `app`; call it before the worker starts.

    Address and port are Faust's: `web_bind`, `web_host` and `web_port` of the app's configuration.
    """
    driver = K2Web(app, api)
    app.web = driver
    return driver
