"""What the HTTP interface gets from a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from k2 import __version__
from k2.settings import key_ring
from k2.web.context import ApiContext

if TYPE_CHECKING:
    from k2.worker import Worker


def api_context(worker: Worker) -> ApiContext:
    """The worker's parts as handlers see them."""
    settings, control, api = worker.settings, worker.control, worker.settings.api
    return ApiContext(
        queries=worker.hot.engine,
        keys=key_ring(settings),
        version=__version__,
        status=worker.status.snapshot,
        checks=worker.status.checks,
        level=lambda: int(control.here),
        feeds=worker.source.sessions,
        workers=control.roster.all,
        quality=worker.hot.quality.report,
        answers_queries="query" in settings.core.roles,
        max_rows=settings.query.max_rows,
        max_body_bytes=api.max_body_bytes,
        operations_open=settings.core.environment == "local",
        observe=worker.status.observe_request,
        degradation=control,
        shed=worker.shed.facts,
        now_us=worker.clock.now_us,
        cors_origins=frozenset(api.cors_origins),
        exclude_conditions=frozenset(settings.candles.exclude_conditions),
        enrichment=worker.hot.enrichment(worker.level),
    )
