"""Queries straight on a data directory: the same HTTP interface, on a socket of its own.

Answers come from the lake alone; what a running worker has not committed yet is not in them.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import UnixConnector, web

from k2 import __version__
from k2.client import K2Client
from k2.clock import SYSTEM_CLOCK
from k2.errors import LakeError
from k2.hot import open_engine
from k2.lakehouse import Lakehouse
from k2.settings import Settings
from k2.web.api import build_api
from k2.web.context import ApiContext
from k2.web.keys import KeyRing


@asynccontextmanager
async def offline_client(settings: Settings) -> AsyncIterator[K2Client]:
    """A client of the lake the settings name, no worker needed.

    Raises `LakeError` when there is no lake.
    """
    directory = settings.core.data_dir
    if not settings.iceberg.catalog_uri and not (directory / "catalog.db").exists():
        raise LakeError(
            f"the data directory {str(directory)!r} holds no lake (catalog.db is missing); name "
            "one that a worker has written with --data-dir, or ask a server with --url",
            directory=str(directory),
        )
    lake = await asyncio.to_thread(Lakehouse.open, settings, SYSTEM_CLOCK)
    engine = open_engine(settings, lake, {})
    key = secrets.token_urlsafe(16)
    runner = web.AppRunner(
        build_api(
            ApiContext(
                queries=engine,
                keys=KeyRing.single(key),
                version=__version__,
                status=dict,
                checks=tuple,
                level=lambda: 0,
                max_rows=settings.query.max_rows,
                max_body_bytes=settings.api.max_body_bytes,
                exclude_conditions=frozenset(settings.candles.exclude_conditions),
            )
        )
    )
    try:
        with tempfile.TemporaryDirectory(prefix="k2-query-") as private:
            socket = str(Path(private) / "api.sock")
            await runner.setup()
            await web.UnixSite(runner, socket).start()
            async with K2Client("http://k2", key=key, connector=UnixConnector(socket)) as client:
                yield client
    finally:
        await runner.cleanup()
        engine.close()
        lake.close()
