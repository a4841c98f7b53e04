"""One open connection: a reader, a heartbeat, and the judgement whether it is alive.

Quiet is not dead: a pong proves a connection alive on which nothing is traded. A connection is
given up when a ping brings nothing at all within the timeout, or when neither frame nor pong came
for the stale limit. Time in which we ourselves did not read (no room) does not count.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from k2.clock import Clock
from k2.sources.buffer import FrameBuffer
from k2.sources.connector import Event, Socket
from k2.sources.refused import RAW_KEPT_BYTES, Refused
from k2.sources.stats import SessionStats


class ExchangeProtocol(Protocol):
    """What a session must know of an exchange."""

    def url(self, base: str) -> str:
        """The address to connect to below a base address."""

    def messages(self) -> list[str]:
        """What to send once connected."""

    def is_data(self, frame: bytes) -> bool:
        """False for answers to control messages."""


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """Seconds, and the largest frame in bytes; `stale_after_s` 0 means never."""

    ping_interval_s: float = 20.0
    ping_timeout_s: float = 10.0
    stale_after_s: float = 30.0
    subscribe_per_s: float = 4.0
    max_frame_bytes: int = 1_048_576


class Link:
    """Reads `socket` into `buffer` until it ends; `run` returns why it ended."""

    def __init__(
        self,
        socket: Socket,
        exchange: ExchangeProtocol,
        buffer: FrameBuffer,
        stats: SessionStats,
        clock: Clock,
        limits: LinkLimits,
        *,
        refuse: Callable[[Refused], None],
        on_flow: Callable[[], None],
        held: bool = False,
    ) -> None:
        self.flowing = asyncio.Event()
        self.subscribed = asyncio.Event()
        self._released = asyncio.Event()
        if not held:
            self._released.set()
        self._socket = socket
        self._exchange = exchange
        self._buffer = buffer
        self._stats = stats
        self._clock = clock
        self._limits = limits
        self._refuse = refuse
        self._on_flow = on_flow
        self._heard_s = clock.monotonic_s()
        self.blocked = False

    async def run(self) -> str:
        """Read, subscribe and watch until one of them ends the connection; the reason."""
        tasks = [
            asyncio.create_task(self._read()),
            asyncio.create_task(self._watch()),
            asyncio.create_task(self._subscribe()),
        ]
        try:
            while True:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                reasons = [reason for task in done if (reason := task.result())]
                if reasons:
                    return reasons[0]
                tasks = [task for task in tasks if task not in done]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._socket.close()

    def release(self) -> None:
        """Let a held link deliver: the one before it has given everything."""
        self._released.set()

    async def finish(self) -> None:
        """Ask the other side to close; `run` ends when it has, all frames delivered."""
        self._released.set()
        try:
            await self._socket.say_goodbye()
        except ConnectionError:
            return  # it is gone already, and `run` says so

    async def _read(self) -> str:
        socket, clock = self._socket, self._clock
        while True:
            event, data = await socket.receive()
            self._heard_s = clock.monotonic_s()
            if event is Event.FRAME:
                await self._take(data)
            elif event is Event.PONG:
                self._stats.pongs += 1
                self._stats.last_pong_us = clock.now_us()
            elif event is not Event.PING:
                return self._ended(event, data)

    async def _take(self, data: bytes) -> None:
        stats, recv_us = self._stats, self._clock.now_us()
        if not self.flowing.is_set() and self._exchange.is_data(data):
            self.flowing.set()
            self._on_flow()
        if not self._released.is_set():
            await self._wait(self._released.wait())
        stats.frames += 1
        stats.bytes += len(data)
        stats.last_frame_us = recv_us
        if len(data) > self._limits.max_frame_bytes:
            self._refuse_large(data, recv_us)
        elif not self._buffer.add((recv_us, data)):
            stats.waits_for_room += 1
            await self._wait(self._buffer.room())

    async def _wait(self, what: Awaitable[object]) -> None:
        """Wait without reading; the silence of that time is ours, not the exchange's."""
        self.blocked = True
        await what
        self.blocked = False
        self._heard_s = self._clock.monotonic_s()

    def _refuse_large(self, data: bytes, recv_us: int) -> None:
        self._stats.too_large += 1
        limit = self._limits.max_frame_bytes
        detail = f"frame of {len(data)} bytes; the limit is {limit}"
        self._refuse(Refused("frame_too_large", data[:RAW_KEPT_BYTES], detail, recv_us))

    def _ended(self, event: Event, data: bytes) -> str:
        self._stats.last_error = data.decode("utf-8", "replace")
        if event is Event.TOO_LARGE:
            self._stats.too_large += 1
            detail = "frame beyond what one connection may hold: " + self._stats.last_error
            self._refuse(Refused("frame_too_large", b"", detail, self._clock.now_us()))
            return "frame_too_large"
        return "closed_by_peer" if event is Event.CLOSED else "error"

    async def _subscribe(self) -> str:
        for message in self._exchange.messages():
            try:
                await self._socket.send(message)
            except ConnectionError as exc:
                self._stats.last_error = str(exc)
                return "send_failed"
            await self._clock.sleep(1 / self._limits.subscribe_per_s)
        self.subscribed.set()
        return ""

    async def _watch(self) -> str:
        limits, clock = self._limits, self._clock
        ping_at_s = clock.monotonic_s() + limits.ping_interval_s
        pinged_s = answer_by_s = math.inf
        stale_s = limits.stale_after_s or math.inf
        while True:
            wake_s = min(ping_at_s, answer_by_s, self._heard_s + stale_s)
            await clock.sleep(max(0.0, wake_s - clock.monotonic_s()))
            now_s = clock.monotonic_s()
            if self.blocked:
                self._heard_s = now_s
            if now_s >= answer_by_s:
                if self._heard_s < pinged_s:
                    return "pong_timeout"
                answer_by_s = math.inf
            if now_s - self._heard_s >= stale_s:
                return "stale"
            if now_s >= ping_at_s:
                if not await self._ping():
                    return "send_failed"
                pinged_s, answer_by_s = now_s, now_s + limits.ping_timeout_s
                ping_at_s = now_s + max(limits.ping_interval_s, limits.ping_timeout_s)

    async def _ping(self) -> bool:
        try:
            await self._socket.ping()
        except ConnectionError as exc:
            self._stats.last_error = str(exc)
            return False
        self._stats.pings += 1
        return True
