"""An exchange that speaks one exchange's protocol, fed by captures or the simulator.

Delivery: `per-connection` gives every client the whole feed from its start, as fast as it takes it
(back-pressure; nothing is lost); `by-clock` plays the feed once for everybody, whether or not
someone listens, and a client gets what is sent while it is connected.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from itertools import islice
from typing import Any, Literal

import structlog
from aiohttp import WSCloseCode, web

from k2.clock import SYSTEM_CLOCK, Clock
from k2.errors import CaptureError, ConfigError
from k2.exchange.binance import BinanceDialect
from k2.exchange.capture import Frame
from k2.exchange.connection import MAX_BACKLOG_BYTES, Connection, PingPolicy
from k2.exchange.dialect import Dialect, Recent
from k2.exchange.faults import Faults
from k2.exchange.feed import Feed, Playback
from k2.exchange.past import Past, history_routes
from k2.exchange.rest import control_routes, market_routes
from k2.exchange.tally import QUOTE, TRADE, Tally, ids_of

_log = structlog.get_logger(__name__)

Mode = Literal["per-connection", "by-clock"]

#: Entries of the ring of sending times (`GET /k2/sends`).
DEFAULT_SENDS = 65_536

#: Frames kept for the fault `resend`.
_RECENT_FRAMES = 20_000

_MAX_URL_BYTES = 65_536  # 1,024 streams in one address


class ExchangeServer:
    """Serves `feed` on `host:port` (port 0: the system chooses; see `port` after `start`).

    `speed` is a multiple of real time, None means as fast as possible. By the clock, the clock
    starts with the first subscription unless `wait_for_client` is False. `sent` keeps the last
    `sends` times of sending and, with `keep_ids`, every id.
    """

    def __init__(
        self,
        feed: Feed,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        speed: float | None = 1.0,
        mode: Mode = "per-connection",
        wait_for_client: bool = True,
        sends: int = DEFAULT_SENDS,
        keep_ids: bool = False,
        pings: PingPolicy | None = None,
        clock: Clock = SYSTEM_CLOCK,
        dialect: Dialect | None = None,
    ) -> None:
        self.dialect = dialect or BinanceDialect()
        self.newest = Recent(self.dialect.trades)
        self.past = Past()
        self.host = host
        self.port = port
        self.feed = feed
        self.clock = clock
        self.faults = Faults(clock)
        self.sent = Tally(sends, keep_ids=keep_ids)
        self.played = Tally()
        #: What was played last, for sending it again.
        self.recent: deque[Frame] = deque(maxlen=_RECENT_FRAMES)
        self.clients: set[Connection] = set()
        self.connections = 0
        self.started_at_us: int | None = None
        self.error: CaptureError | None = None
        self.ended = asyncio.Event()
        self.failed = asyncio.Event()
        self._speed = speed
        self._mode: Mode = mode
        self._wait_for_client = wait_for_client
        self._pings = pings or PingPolicy()
        self._subscribed = asyncio.Event()
        self._replays = 0
        self._runner: web.AppRunner | None = None
        self._clock_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen. Raises `ConfigError` when the address cannot be had."""
        app = web.Application(client_max_size=1_048_576)
        app.add_routes([*market_routes(self), *history_routes(self.past), *control_routes(self)])
        for path in self.dialect.paths:
            app.router.add_get(path, self._accept)
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=1.0, max_line_size=_MAX_URL_BYTES
        )
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self.host, self.port).start()
        except OSError as exc:
            await self._runner.cleanup()
            raise ConfigError(
                f"the exchange server cannot listen on {self.host}:{self.port}: {exc.strerror}; "
                "choose another --port (0 picks a free one)",
                port=self.port,
            ) from exc
        self.port = self._runner.addresses[0][1]
        if self._mode == "by-clock":
            self._clock_task = asyncio.create_task(self._play_by_clock())

    async def stop(self) -> None:
        """Say goodbye to every client and stop listening."""
        if self._clock_task is not None:
            self._clock_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._clock_task
        for client in tuple(self.clients):
            await client.close(WSCloseCode.GOING_AWAY, b"server stops")
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def url(self) -> str:
        """The WebSocket base address."""
        return f"ws://{self.host}:{self.port}"

    @property
    def finished(self) -> bool:
        """True when the whole feed was sent, and nobody is still being served from it."""
        return self.ended.is_set() and self._replays == 0 and self.error is None

    @property
    def state(self) -> str:
        """`waiting`, `running`, `finished` or `failed`."""
        if self.error is not None:
            return "failed"
        if self.finished:
            return "finished"
        return "waiting" if self.started_at_us is None else "running"

    def status(self) -> dict[str, Any]:
        """What `GET /k2/status` answers."""
        return {
            "state": self.state,
            "finished": self.finished,
            "exchange": self.dialect.name,
            "mode": self._mode,
            "speed": self._speed if self._speed is not None else "max",
            "started_at_us": self.started_at_us,
            "error": self.error.message if self.error else None,
            "clients": len(self.clients),
            "connections": self.connections,
            "frames_sent": self.sent.count(),
            "trades_sent": self.sent.count(TRADE),
            "quotes_sent": self.sent.count(QUOTE),
            "streams": self.sent.as_json(),
            "played": self.played.as_json(),
        }

    async def _accept(self, request: web.Request) -> web.StreamResponse:
        if self.faults.take_refusal():
            return web.json_response({"code": -1000, "msg": "Service unavailable"}, status=503)
        connection = Connection(
            request,
            self.clock,
            self.faults,
            self.sent,
            self._pings,
            self.dialect,
            # By the clock everybody sees the same market; else each its own replay.
            self.newest if self._mode == "by-clock" else Recent(self.dialect.trades),
        )
        self.connections += 1
        self.clients.add(connection)
        feeding = asyncio.create_task(self._feed(connection))
        try:
            return await connection.serve()
        finally:
            self.clients.discard(connection)
            feeding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await feeding

    async def _feed(self, connection: Connection) -> None:
        await connection.settled()
        self._subscribed.set()
        if self._mode == "by-clock":
            return
        self._note_start()
        self._replays += 1
        try:
            await self._replay(connection)
            self.ended.set()
        except ConnectionError as exc:
            _log.info("exchange_client_gone", error=str(exc))
        except CaptureError as exc:
            self._fail(exc)
        finally:
            self._replays -= 1

    async def _replay(self, connection: Connection) -> None:
        playback = Playback(self.feed, self._speed, self.clock)
        while frames := await playback.next():
            await self.faults.wait_stall()
            connection.recent.add(frames)
            self.past.add(frames)
            connection.write(frames)
            await connection.drain()
            await asyncio.sleep(0)  # a socket that never fills would starve everybody else

    async def _play_by_clock(self) -> None:
        if self._wait_for_client:
            await self._subscribed.wait()
        self._note_start()
        playback = Playback(self.feed, self._speed, self.clock)
        try:
            while frames := await playback.next():
                await self._broadcast(frames)
            self.ended.set()
        except CaptureError as exc:
            self._fail(exc)

    async def _broadcast(self, frames: list[Frame]) -> None:
        await self.faults.wait_stall()
        now_ns = self.clock.now_us() * 1_000
        idents = ids_of(frames)
        self.played.add_all(frames, idents, now_ns)
        self.recent.extend(frames)
        self.newest.add(frames)
        self.past.add(frames, idents)
        for client in tuple(self.clients):
            client.write(frames)
            if client.backlog_bytes > MAX_BACKLOG_BYTES:
                _log.warning("exchange_client_too_slow", backlog_bytes=client.backlog_bytes)
                client.abort()
            elif self._speed is None:
                with contextlib.suppress(ConnectionError):  # its own task reports it
                    await client.drain()
        await asyncio.sleep(0)

    def resend(self, count: int) -> None:
        """Send the oldest `count` frames that are remembered once more, to everybody."""
        frames = list(islice(self.recent, count))
        for client in tuple(self.clients):
            client.write(frames)

    def _note_start(self) -> None:
        if self.started_at_us is None:
            self.started_at_us = self.clock.now_us()

    def _fail(self, error: CaptureError) -> None:
        _log.error("exchange_feed_failed", error=error.message)
        self.error = error
        self.failed.set()
