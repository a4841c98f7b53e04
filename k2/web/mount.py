"""K2's HTTP interface inside Faust's web server: ours at the root, Faust's pages at /faust/."""

from __future__ import annotations

from typing import Any, ClassVar

import faust
from aiohttp import web
from aiohttp.web import AppRunner
from faust.web.drivers.aiohttp import Web

from k2.errors import ConfigError

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
        self._runner = AppRunner(api, access_log=None, handler_cancellation=True)

    async def start_server(self) -> None:
        """Listen. Raises `ConfigError` when the address cannot be had."""
        try:
            await super().start_server()
        except OSError as exc:
            conf = self.app.conf
            raise ConfigError(
                f"the HTTP interface cannot listen on {conf.web_bind}:{conf.web_port}: "
                f"{exc.strerror}; set K2_API_PORT to a free port, or K2_API_HOST to an address of "
                "this machine",
                variable="K2_API_PORT",
            ) from exc


def mount(app: faust.App, api: web.Application) -> K2Web:
    """Make `api` the web server of `app`; call it before the worker starts.

    Address and port are Faust's: `web_bind`, `web_host` and `web_port` of the app's configuration.
    """
    driver = K2Web(app, api)
    app.web = driver
    return driver
