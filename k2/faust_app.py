"""Faust's app as K2 needs it: the worker's parts start before it and end after it."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import faust
import structlog

from k2 import memory
from k2.errors import K2Error
from k2.log import formatter_config
from k2.settings import Settings
from k2.startup import warn_of_unknown_variables
from k2.stopping import FLUSH_S, end_overdue
from k2.web.monitor import K2Monitor

if TYPE_CHECKING:
    from k2.worker import Worker

log = structlog.get_logger(__name__)

#: Exit status of a worker that could not start.
CANNOT_START = 1
_SWITCH_S = 0.0001


class K2App(faust.App):
    """Faust's app, with K2's parts opened before it starts and drained before it stops."""

    worker: Worker

    @classmethod
    def of(cls, settings: Settings) -> K2App:
        """The app as configured; nothing is opened yet."""
        kafka, core = settings.kafka, settings.core
        return cls(
            core.app_id,
            broker=_broker(settings),
            store="memory://",
            autodiscover=False,
            origin="k2",
            datadir=str(core.data_dir / "faust"),
            topic_partitions=kafka.partitions,
            topic_replication_factor=kafka.replication,
            topic_allow_declare=True,
            consumer_auto_offset_reset="earliest",
            broker_session_timeout=kafka.session_timeout_s,
            broker_request_timeout=kafka.request_timeout_s,
            broker_commit_interval=1.0,
            stream_buffer_maxsize=16,
            stream_wait_empty=True,
            Monitor=K2Monitor,
            web_bind=settings.api.host,
            web_host=settings.api.host,
            web_port=settings.api.port,
            logging_config=formatter_config(settings),
        )

    async def start(self) -> None:
        # The loop unpacks while threads decode and write; with Python's 5 ms they wait for the
        # interpreter longer than they work.
        sys.setswitchinterval(_SWITCH_S)
        memory.choose_allocator()
        warn_of_unknown_variables()
        try:
            await self.worker.open()
            memory.settle()
            await super().start()
        except K2Error as exc:
            log.error("worker_cannot_start", error=exc.message, **exc.details)  # noqa: TRY400
            if self.in_worker:
                # Said in one line; Faust would print the traceback of it, twice.
                raise SystemExit(CANNOT_START) from exc
            raise

    async def on_started(self) -> None:
        await super().on_started()
        self.worker.started()

    async def _on_agent_error(self, agent: Any, exc: BaseException) -> None:
        """An agent that fails stops the worker: restarted by Faust it would skip its batch."""
        self.worker.crash(exc)

    async def stop(self) -> None:
        if self.in_worker:
            end_overdue()
        try:
            await self.worker.drain()
        finally:
            self.worker.going()
            try:
                await super().stop()
            finally:
                await self.worker.close()

    async def _producer_flush(self, logger: Any) -> None:
        """As Faust's, but bounded: a log that is away must not hold up a stop or a rebalance."""
        try:
            async with asyncio.timeout(FLUSH_S):
                await super()._producer_flush(logger)
        except TimeoutError:
            log.warning("producer_not_flushed", after_s=FLUSH_S)


def _broker(settings: Settings) -> str:
    """The address of the log: Kafka, or the embedded one in the data directory."""
    if settings.embedded:
        return f"local://{settings.core.data_dir.absolute() / 'log'}"
    return ";".join(
        f"k2kafka://{server.strip()}" for server in settings.kafka.bootstrap_servers.split(",")
    )
