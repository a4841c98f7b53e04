"""A feed that is kept up: connects, reconnects, rotates, hands frames over, never gives up.

Guarantees: frames come out in the order they came in, none is dropped between socket and `batch`
(without room the socket waits), and a graceful close hands over everything received. What the
exchange sent while no connection was open is lost here, and shows downstream as a gap of ids.

Every unplanned end waits a jittered, growing delay and moves to the next address. Before a
connection gets too old a new one is opened; only once that one delivers, the old one is closed and
emptied, and then the new one's frames are let in. Both see the same trades for a moment: ids drop
the repeats.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import structlog

from k2.clock import SYSTEM_CLOCK, Clock
from k2.errors import ConfigError, SourceError
from k2.sources.backoff import Backoff
from k2.sources.buffer import FrameBuffer, Received
from k2.sources.connector import Connector, Socket
from k2.sources.link import ExchangeProtocol, Link, LinkLimits
from k2.sources.refused import Refused
from k2.sources.stats import SessionStats

_log = structlog.get_logger(__name__)

#: Refused frames kept for the taker; more are only counted.
_REFUSED_KEPT = 100


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """`urls`: base addresses, tried in turn. Times in seconds."""

    urls: tuple[str, ...]
    reconnect_initial_s: float = 1.0
    reconnect_max_s: float = 60.0
    connect_timeout_s: float = 10.0
    max_lifetime_s: float = 4 * 3600.0
    handover_s: float = 5.0
    close_timeout_s: float = 5.0
    queue_frames: int = 50_000
    limits: LinkLimits = field(default_factory=LinkLimits)

    def __post_init__(self) -> None:
        if not self.urls:
            raise ConfigError("a session has no address; set K2_BINANCE_URL")


class Session:
    """One reconnecting WebSocket. `run()` in a task; `batch()` takes frames; `close()` ends it."""

    def __init__(
        self,
        exchange: ExchangeProtocol,
        config: SessionConfig,
        connector: Connector,
        *,
        name: str = "session",
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
    ) -> None:
        self.name = name
        self.stats = SessionStats()
        self._exchange = exchange
        self._config = config
        self._connector = connector
        self._clock = clock
        self._buffer = FrameBuffer(config.queue_frames)
        self._refused: deque[Refused] = deque(maxlen=_REFUSED_KEPT)
        self._backoff = Backoff(
            config.reconnect_initial_s,
            config.reconnect_max_s,
            rng or random.Random(),  # noqa: S311 - jitter, not a secret
        )
        self._url_index = 0
        self._closing = asyncio.Event()
        self._closed = asyncio.Event()
        self._running = False
        self._retry_after_s = 0.0

    @property
    def queued(self) -> int:
        """Frames received and not yet taken."""
        return len(self._buffer)

    @property
    def run_number(self) -> int:
        """Of the last batch: within one run of the session no frame is missing."""
        return self._buffer.run

    async def batch(self, max_frames: int) -> list[Received]:
        """Up to `max_frames` frames of one run; waits for the first. Empty once closed and drained.

        Each is (receive time in microseconds UTC, bytes). For one taker.
        """
        return await self._buffer.take(max_frames)

    def take_refused(self) -> list[Refused]:
        """Frames refused for their size since the last call, for the dead letters."""
        taken = list(self._refused)
        self._refused.clear()
        return taken

    async def close(self) -> None:
        """Close gracefully; `batch` still hands over what was received."""
        self._closing.set()
        if self._running:
            await self._closed.wait()
        self._buffer.close()

    async def run(self) -> None:
        """Keep a connection open until `close()`. Failures are counted and logged, not raised."""
        self._running = True
        try:
            while not self._closing.is_set():
                try:
                    await self._connect_and_keep()
                except Exception as exc:  # noqa: BLE001 - a feed outlives its own bugs, loudly
                    _log.exception("session_failed", session=self.name)
                    self._note_failure("error", repr(exc))
                await self._wait_before_retry()
        finally:
            self.stats.state = "closed"
            self._buffer.close()
            self._closed.set()
            await self._connector.close()

    async def _connect_and_keep(self) -> None:
        link = await self._open()
        if link is not None and (reason := await self._keep(link)):
            self._note_failure(reason, self.stats.last_error)

    async def _open(self, *, held: bool = False) -> Link | None:
        """A connected link, or None after noting the failure."""
        base = self._config.urls[self._url_index]
        if not held:
            self.stats.state = "connecting"
        socket = await self._connect(base)
        if socket is None:
            return None
        if not held:
            # A rotation hands over without a moment between; anything else may have lost frames.
            self._buffer.begin_run()
        self.stats.connects += 1
        self.stats.url = base
        self.stats.state = "connected"
        self.stats.connected_at_us = self._clock.now_us()
        _log.info("session_connected", session=self.name, url=base)
        return Link(
            socket,
            self._exchange,
            self._buffer,
            self.stats,
            self._clock,
            self._config.limits,
            refuse=self._refused.append,
            on_flow=self._note_flow,
            held=held,
        )

    async def _connect(self, base: str) -> Socket | None:
        """An open socket; None after noting the failure, or when the session closes meanwhile."""
        limit_s = self._config.connect_timeout_s
        connecting = asyncio.ensure_future(self._connector.connect(self._exchange.url(base)))
        try:
            await self._first(connecting, limit_s, self._closing)
            if connecting.done():
                return connecting.result()
        except SourceError as exc:
            self._note_failure("connect_failed", exc.message)
            self._retry_after_s = float(exc.details.get("retry_after_s", 0.0))
            return None
        finally:
            await _cancelled(connecting)
        if not self._closing.is_set():
            self._note_failure("connect_failed", f"{base} did not answer within {limit_s} s")
        return None

    async def _keep(self, link: Link) -> str:
        """Serve `link` and its successors; why the last ended, or "" when the session closes."""
        running = asyncio.create_task(link.run())
        wait_s = self._config.max_lifetime_s
        try:
            while True:
                await self._first(running, wait_s, self._closing)
                if running.done():
                    return running.result()
                if self._closing.is_set():
                    await self._finish(link, running)
                    return ""
                replaced = await self._rotate(link, running)
                wait_s = self._config.max_lifetime_s if replaced else self._config.reconnect_max_s
                link, running = replaced or (link, running)
        finally:
            await _cancelled(running)

    async def _rotate(
        self, old: Link, old_running: asyncio.Task[str]
    ) -> tuple[Link, asyncio.Task[str]] | None:
        """Move to a new connection without a moment between; None when none can be had now."""
        new = await self._open(held=True)
        if new is None:
            return None
        running = asyncio.create_task(new.run())
        try:
            await self._first(running, self._config.handover_s, new.flowing, self._closing)
            if running.done():
                self._note_failure(running.result(), self.stats.last_error)
                return None
            await self._finish(old, old_running, patient=True)
        except asyncio.CancelledError:
            await _cancelled(running)
            raise
        new.release()
        self.stats.reconnects["rotation"] += 1
        _log.info("session_rotated", session=self.name, url=self.stats.url)
        return new, running

    async def _finish(
        self, link: Link, running: asyncio.Task[str], *, patient: bool = False
    ) -> None:
        """Close `link` and take what is under way; `patient`: however long the taker needs."""
        await link.finish()
        while True:
            await self._first(running, self._config.close_timeout_s)
            if running.done() or not (patient and link.blocked) or self._closing.is_set():
                break
        await _cancelled(running)

    async def _first(
        self, running: asyncio.Future[Any], seconds: float, *events: asyncio.Event
    ) -> None:
        """Return when `running` ends, an event is set, or `seconds` are over."""
        others: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._clock.sleep(seconds))]
        others += [asyncio.ensure_future(_set(event)) for event in events]
        try:
            await asyncio.wait([running, *others], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancelled(*others)

    async def _wait_before_retry(self) -> None:
        stats = self.stats
        stats.failures_in_a_row = self._backoff.failures + 1
        stats.backoff_s = max(self._backoff.next_s(), self._retry_after_s)
        self._retry_after_s = 0.0
        if self._closing.is_set():
            return
        stats.state = "waiting"
        sleeping = asyncio.ensure_future(self._clock.sleep(stats.backoff_s))
        closing = asyncio.ensure_future(_set(self._closing))
        try:
            await asyncio.wait([sleeping, closing], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancelled(sleeping, closing)

    def _note_flow(self) -> None:
        self._backoff.reset()
        self.stats.failures_in_a_row = 0
        self.stats.backoff_s = 0.0

    def _note_failure(self, reason: str, detail: str) -> None:
        self.stats.reconnects[reason] += 1
        self.stats.last_error = detail
        self._url_index = (self._url_index + 1) % len(self._config.urls)
        _log.warning("session_interrupted", session=self.name, reason=reason, detail=detail)


async def _set(event: asyncio.Event) -> None:
    await event.wait()


async def _cancelled(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
