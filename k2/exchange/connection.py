"""One client's WebSocket: its subscriptions, its pings, and frames written in bulk."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from dataclasses import dataclass
from typing import Any

import structlog
from aiohttp import WSCloseCode, WSMsgType, web

from k2.clock import Clock
from k2.exchange.capture import Frame
from k2.exchange.control import MessageLimit
from k2.exchange.dialect import Dialect, Recent
from k2.exchange.faults import Faults
from k2.exchange.tally import OTHER, Tally, id_of, ids_of, kind_of

_log = structlog.get_logger(__name__)

_TEXT = 0x81  # final fragment, opcode text; a server does not mask (RFC 6455, 5.1)

#: A client this far behind a clock that does not wait is cut off, as Binance does.
MAX_BACKLOG_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class PingPolicy:
    """Binance pings every 20 s and cuts off who has not answered for a minute."""

    interval_s: float = 20.0
    timeout_s: float = 60.0


def frame_header(length: int) -> bytes:
    """The WebSocket header of an unmasked text frame of `length` bytes."""
    if length < 126:
        return struct.pack("!BB", _TEXT, length)
    if length < 65_536:
        return struct.pack("!BBH", _TEXT, 126, length)
    return struct.pack("!BBQ", _TEXT, 127, length)


_HEADERS = [frame_header(length) for length in range(1_024)]


class Connection:
    """A connected client. `serve()` runs until it is gone; `write()` and `drain()` feed it."""

    def __init__(
        self,
        request: web.Request,
        clock: Clock,
        faults: Faults,
        tally: Tally,
        pings: PingPolicy,
        dialect: Dialect,
        recent: Recent,
    ) -> None:
        self.subscriptions = dialect.open(request.path, request.query.get("streams", ""))
        self.recent = recent
        self._dialect = dialect
        self._said_s = clock.monotonic_s()
        self.subscribed = asyncio.Event()
        self._request = request
        self._clock = clock
        self._faults = faults
        self._tally = tally
        self._pings = pings
        self._limit = MessageLimit(dialect.messages_per_s)
        self._held: dict[str, Frame] = {}
        self._goodbye = asyncio.Lock()
        self._last_pong_s = clock.monotonic_s()
        # Uncompressed, so that frames can be written as bytes without the library's writer.
        self._ws = web.WebSocketResponse(
            autoping=False, compress=False, timeout=1.0, max_msg_size=65_536
        )

    async def serve(self) -> web.WebSocketResponse:
        """Answer control messages until the client leaves or breaks a rule."""
        await self._ws.prepare(self._request)
        self._note_subscriptions()
        await self._say(self._dialect.greeting())
        tasks = [asyncio.create_task(self._ping()), asyncio.create_task(self._beat())]
        try:
            async for message in self._ws:
                await self._receive(message.type, message.data)
        except ConnectionError as exc:
            _log.info("exchange_client_gone", error=str(exc))
        finally:
            # A close handshake begun elsewhere must end before the handler returns, which drops
            # the connection.
            async with self._goodbye:
                for task in tasks:
                    task.cancel()
        return self._ws

    async def _receive(self, kind: WSMsgType, data: Any) -> None:
        if self._limit.exceeded(self._clock.monotonic_s()):
            await self.close(WSCloseCode.POLICY_VIOLATION, b"Too many requests")
        elif kind is WSMsgType.PING:
            if not self._faults.deaf:
                await self._ws.pong(data)
        elif kind is WSMsgType.PONG:
            self._last_pong_s = self._clock.monotonic_s()
        elif kind in (WSMsgType.TEXT, WSMsgType.BINARY):
            self._said_s = self._clock.monotonic_s()
            await self._say(self._dialect.answer(data, self.subscriptions, self.recent))
            self._note_subscriptions()

    async def _say(self, texts: list[str]) -> None:
        for text in texts:
            await self._ws.send_str(text)

    async def _beat(self) -> None:
        every_s = self._dialect.heartbeat_s
        while every_s:
            await self._clock.sleep(every_s)
            if not self._faults.deaf and not self._ws.closed:
                now_us = self._clock.now_us()
                beats = self._dialect.heartbeat(self.subscriptions, self.recent, now_us)
                with contextlib.suppress(ConnectionError):  # the reader reports it
                    await self._say(beats)

    async def settled(self) -> None:
        """Return when the client has said what it wants."""
        await self.subscribed.wait()
        while (left_s := self._said_s + self._dialect.settle_s - self._clock.monotonic_s()) > 0:
            await self._clock.sleep(left_s)

    def _note_subscriptions(self) -> None:
        if self.subscriptions.streams:
            self.subscribed.set()

    async def _ping(self) -> None:
        while True:
            await self._clock.sleep(self._pings.interval_s)
            silent_s = self._clock.monotonic_s() - self._last_pong_s
            if silent_s > self._pings.timeout_s:
                _log.info("exchange_client_silent", seconds=silent_s)
                await self.close(WSCloseCode.POLICY_VIOLATION, b"Pong timeout")
                return
            if not self._faults.deaf:
                await self._ws.ping(str(self._clock.now_us() // 1_000).encode())

    def write(self, frames: list[Frame]) -> None:
        """Write the frames this client subscribed to; waits for nothing."""
        parts, sent = self._chosen(frames)
        transport = self._request.transport
        if not parts or self._ws.closed or transport is None or transport.is_closing():
            return
        transport.write(b"".join(parts))
        self._count(sent)

    def _chosen(self, frames: list[Frame]) -> tuple[list[bytes], list[Frame]]:
        streams = self.subscriptions.streams
        chosen = [frame for frame in frames if frame.stream in streams]
        if self._held or self._faults.reorders > 0:
            chosen = self._reordered(chosen)
        if self._faults.touch_frames:
            chosen = [frame for frame in chosen for _ in range(self._copies(frame))]
        parts: list[bytes] = []
        for frame in chosen:
            data = self._dialect.render(frame, self.subscriptions)
            length = len(data)
            parts.append(_HEADERS[length] if length < 1_024 else frame_header(length))
            parts.append(data)
        return parts, chosen

    def _reordered(self, frames: list[Frame]) -> list[Frame]:
        """Neighbours of one stream the other way round, as often as asked for."""
        sent: list[Frame] = []
        for frame in frames:
            held = self._held.pop(frame.stream, None)
            if held is not None:
                sent += [frame, held]
            elif kind_of(frame.stream) != OTHER and self._faults.take_reorder():
                self._held[frame.stream] = frame
            else:
                sent.append(frame)
        return sent

    def _copies(self, frame: Frame) -> int:
        return self._faults.copies(id_of(kind_of(frame.stream), frame.data))

    def _count(self, sent: list[Frame]) -> None:
        sent_ns = self._clock.now_us() * 1_000
        self._tally.add_all(sent, ids_of(sent), sent_ns)

    async def drain(self) -> None:
        """Return when the socket takes more. Raises `ConnectionError` when the client is gone."""
        # aiohttp offers no public wait for a raw write; its own writers use this very helper.
        await self._request.protocol._drain_helper()

    @property
    def backlog_bytes(self) -> int:
        """Bytes written that the client has not yet taken."""
        transport = self._request.transport
        if transport is None or not isinstance(transport, asyncio.WriteTransport):
            return 0
        return transport.get_write_buffer_size()

    async def inject(self, payload: bytes) -> None:
        """Send `payload` as one text frame, whatever it is."""
        transport = self._request.transport
        if isinstance(transport, asyncio.WriteTransport):
            transport.write(frame_header(len(payload)) + payload)
            await self.drain()

    async def close(self, code: int, reason: bytes = b"") -> None:
        """Close with a WebSocket close frame."""
        async with self._goodbye:
            await self._ws.close(code=code, message=reason)

    def cut(self) -> None:
        """Send the first half of a frame and drop the connection."""
        transport = self._request.transport
        if isinstance(transport, asyncio.WriteTransport):
            transport.write(frame_header(200) + b'{"stream":"btcusdt@trade","data":{"e":"tra')
            transport.close()  # after what is written; without a goodbye

    def abort(self) -> None:
        """Drop the connection without a goodbye."""
        transport = self._request.transport
        if isinstance(transport, asyncio.WriteTransport):
            transport.abort()
