"""When a replay is drained, and what the demo says at its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from k2.cli.demo.client import ExchangeClient, WorkerClient
from k2.cli.demo.processes import Child
from k2.errors import K2Error
from k2.lake.catalog import open_catalog
from k2.lake.reader import LakeReader
from k2.lake.tables import TABLES
from k2.settings import Settings

_STALL_S = 60.0
_POLL_S = 0.1


class NotDrained(K2Error):
    """The replay did not come to its end."""

    code = "not_drained"


class Drain:
    """Waits until every frame the exchange sent is in the lake or in the dead letters."""

    def __init__(
        self, client: WorkerClient, worker: Child, exchange: ExchangeClient, stop: asyncio.Event
    ) -> None:
        self._client = client
        self._worker = worker
        self._exchange = exchange
        self._stop = stop

    async def wait(self) -> dict[str, Any]:
        """The worker's status once drained. Raises `NotDrained` on a stop or a standstill."""
        loop = asyncio.get_running_loop()
        moved_at, last_seen = loop.time(), None
        while True:
            self._worker.check()
            status, sent = await self._client.status(), await self._exchange.status()
            if drained(status, sent):
                return status
            seen = _progress(status, sent)
            if seen != last_seen:
                moved_at, last_seen = loop.time(), seen
            if loop.time() - moved_at > _STALL_S:
                raise NotDrained(
                    f"nothing has moved for {_STALL_S:.0f} s; exchange: {sent}; "
                    f"pipeline: {last_seen}; the worker's log:\n{self._worker.log_tail()}"
                )
            if self._stop.is_set():
                raise NotDrained(f"stopped before the replay was stored; so far: {last_seen}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _POLL_S)


def drained(status: dict[str, Any], sent: dict[str, Any]) -> bool:
    """True when the exchange has no more, the source has it all, and nothing is on its way."""
    source = status["source"]
    return bool(
        sent["finished"]
        # Heartbeats and answers are none of the replay's frames.
        and source["frames"] - source["control"] >= sent["frames_sent"]
        and source["queued"] == 0
        and status["drained"]
    )


def stored_rows(settings: Settings) -> dict[str, int]:
    """Rows per table of the lake, read as any other program reads it; blocking."""
    reader = LakeReader(open_catalog(settings))
    return {
        name: sum(file.rows for file in reader.files(reader.current(table)))
        for name, table in TABLES.items()
    }


def _progress(status: dict[str, Any], sent: dict[str, Any]) -> tuple[Any, ...]:
    return (
        sent["frames_sent"],
        status["source"]["frames"],
        status["validate"]["records"],
        status["lake"]["trades"],
        status["lake"]["quotes"],
        status["lag"],
    )


def final_report(
    status: dict[str, Any],
    sent: dict[str, Any] | None,
    stored: Mapping[str, int],
    open_gaps: int,
) -> dict[str, Any]:
    """The JSON object `k2 demo --json` ends with; counts of this run, the lake's rows in all."""
    source, validate = status["source"], status["validate"]
    seconds = status["active_seconds"]
    return {
        "source": {
            "frames": source["frames"],
            "trades": source["trades"],
            "quotes": source["quotes"],
            "sent_by_exchange": sent["frames_sent"] if sent else None,
        },
        "lake": {"trades": stored["trades"], "quotes": stored["quotes"]},
        "duplicates_dropped": validate["duplicates"],
        "dead_letters": validate["dead_letters"] + source["refused"],
        "gaps": open_gaps,
        "seconds": round(seconds, 3),
        "rows_per_s": round(status["sink"]["rows"] / seconds, 1) if seconds else 0.0,
        "freshness_ms": {
            "p50": status["freshness_ms"]["p50"],
            "p99": status["freshness_ms"]["p99"],
        },
    }
