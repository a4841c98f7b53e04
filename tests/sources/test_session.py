"""The session against the real exchange server; time is moved by hand."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from k2.exchange.capture import Frame
from k2.exchange.connection import PingPolicy
from k2.exchange.server import ExchangeServer
from k2.sources.binance_protocol import BinanceProtocol
from k2.sources.buffer import Received
from k2.sources.connector import FRAME_CEILING_BYTES, AiohttpConnector, Socket
from k2.sources.link import LinkLimits
from k2.sources.session import Session, SessionConfig
from k2.testing.clock import ManualClock, eventually, turns
from tests.exchange.feeds import ListFeed, serving, trade

STREAMS = ("btcusdt@trade", "btcusdt@bookTicker")


class Top(random.Random):
    """Jitter at its most, so that delays are known."""

    def uniform(self, a: float, b: float) -> float:
        return b


@asynccontextmanager
async def running(
    *urls: str,
    clock: ManualClock | None = None,
    streams: tuple[str, ...] = STREAMS,
    limits: LinkLimits | None = None,
    **options: Any,
) -> AsyncIterator[Session]:
    config = SessionConfig(urls, limits=limits or LinkLimits(), **options)
    session = Session(
        BinanceProtocol(streams),
        config,
        AiohttpConnector(),
        clock=clock or ManualClock(),
        rng=Top(),
    )
    task = asyncio.create_task(session.run())
    try:
        yield session
    finally:
        closing = asyncio.create_task(session.close())
        while await session.batch(1_000_000):
            pass
        await closing
        await task


async def take(session: Session, count: int) -> list[Received]:
    taken: list[Received] = []
    async with asyncio.timeout(10):
        while len(taken) < count:
            taken += await session.batch(count - len(taken))
    return taken


def ids(received: list[Received]) -> list[int]:
    return [json.loads(frame)["data"]["t"] for _, frame in received]


async def fault(server: ExchangeServer, **body: Any) -> None:
    url = f"http://127.0.0.1:{server.port}/k2/fault"
    async with aiohttp.ClientSession() as http, http.post(url, json=body) as reply:
        assert reply.status == 200


def trades(count: int, every_ms: int = 0) -> list[Frame]:
    return [trade(n, at_ms=n * every_ms) for n in range(1, count + 1)]


async def test_frames_come_in_order_with_their_time() -> None:
    clock = ManualClock(start_us=42)
    frames = trades(3_000)
    async with serving(ListFeed(frames)) as server, running(server.url, clock=clock) as session:
        received = await take(session, len(frames))
        assert received == [(42, frame.data) for frame in frames]
        stats = session.stats
        assert (stats.frames, stats.connects, stats.connected) == (3_000, 1, True)
        assert stats.bytes == sum(len(frame.data) for frame in frames)
        assert stats.last_frame_us == 42


@pytest.mark.parametrize("how", [{"code": 1000}, {"code": 1012}, {"abort": True}])
async def test_a_lost_connection_is_made_anew_after_a_delay(how: dict[str, Any]) -> None:
    clock = ManualClock()
    async with (
        serving(ListFeed(trades(2))) as server,
        running(server.url, clock=clock, reconnect_initial_s=4.0) as session,
    ):
        await take(session, 2)
        await fault(server, kind="disconnect", **how)
        await eventually(lambda: session.stats.state == "waiting")
        assert session.stats.backoff_s == 4.0
        assert session.stats.reconnects.total() == 1
        await clock.advance(3.9)
        assert server.connections == 1
        await clock.advance(0.2)
        assert ids(await take(session, 2)) == [1, 2]
        assert (server.connections, session.stats.failures_in_a_row) == (2, 0)


async def test_it_never_gives_up_and_the_delay_is_capped_and_reset() -> None:
    clock = ManualClock()
    async with (
        serving(ListFeed(trades(1))) as server,
        running(server.url, clock=clock, reconnect_initial_s=1.0, reconnect_max_s=8.0) as session,
    ):
        await take(session, 1)
        server.faults.refusals = 15
        await fault(server, kind="disconnect")
        delays = []
        for failure in range(16):
            await eventually(
                lambda n=failure: (
                    session.stats.state == "waiting" and session.stats.failures_in_a_row == n + 1
                )
            )
            delays.append(session.stats.backoff_s)
            await clock.advance(session.stats.backoff_s)
        assert delays == [1, 2, 4] + [8] * 13
        await take(session, 1)
        assert session.stats.reconnects["connect_failed"] == 15
        assert "503" in session.stats.last_error
        assert session.stats.backoff_s == 0
        await fault(server, kind="disconnect")
        await eventually(lambda: session.stats.state == "waiting")
        assert session.stats.backoff_s == 1.0


async def test_each_failure_moves_to_the_next_address() -> None:
    clock = ManualClock()
    async with (
        serving(ListFeed(trades(1))) as one,
        serving(ListFeed(trades(1))) as two,
        running("ws://127.0.0.1:1", one.url, two.url, clock=clock) as session,
    ):
        for server, dead_tried in ((one, 1), (two, 1), (one, 2)):
            while not server.clients:
                await eventually(lambda s=server: s.clients or session.stats.state == "waiting")
                if session.stats.state == "waiting":
                    await clock.advance(session.stats.backoff_s)
            await take(session, 1)
            assert session.stats.url == server.url
            assert session.stats.reconnects["connect_failed"] == dead_tried
            await fault(server, kind="disconnect")


async def test_a_quiet_connection_that_answers_pings_is_alive() -> None:
    clock = ManualClock()
    limits = LinkLimits(ping_interval_s=20, ping_timeout_s=10, stale_after_s=30)
    async with (
        serving(ListFeed([]), clock=clock) as server,
        running(server.url, clock=clock, limits=limits) as session,
    ):
        await eventually(lambda: server.clients)
        for pongs in range(1, 20):
            await clock.advance(20)
            await eventually(lambda n=pongs: session.stats.pongs == n)
        assert (session.stats.reconnects.total(), server.connections) == (0, 1)
        assert session.stats.frames == 0
        assert session.stats.last_pong_us == clock.now_us()


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (LinkLimits(ping_interval_s=20, ping_timeout_s=10, stale_after_s=0), "pong_timeout"),
        (LinkLimits(ping_interval_s=500, ping_timeout_s=10, stale_after_s=30), "stale"),
    ],
)
async def test_a_connection_that_answers_nothing_is_dead(limits: LinkLimits, reason: str) -> None:
    clock = ManualClock()
    async with (
        serving(ListFeed(trades(1))) as server,
        running(server.url, clock=clock, limits=limits) as session,
    ):
        await take(session, 1)
        server.faults.stall(1e9, pongs=False)
        await clock.advance(29)
        await turns()
        assert session.stats.connected
        await clock.advance(1)
        await eventually(lambda: session.stats.reconnects[reason] == 1)
        server.faults.stall(0, pongs=True)
        await clock.advance(1)
        assert ids(await take(session, 1)) == [1]


async def test_without_room_the_socket_waits_and_nothing_is_lost_or_called_dead() -> None:
    clock = ManualClock()
    frames = trades(60_000)
    patient = PingPolicy(interval_s=1e6, timeout_s=1e6)
    async with (
        serving(ListFeed(frames), clock=clock, pings=patient) as server,
        running(server.url, clock=clock, queue_frames=100) as session,
    ):
        await eventually(lambda: session.stats.waits_for_room)
        await eventually(lambda: any(client.backlog_bytes for client in server.clients))
        await clock.advance(300)
        assert session.queued == 100
        assert server.sent.count() < len(frames)
        received = await take(session, len(frames))
        assert ids(received) == list(range(1, 60_001))
        assert session.stats.reconnects.total() == 0


async def test_a_huge_frame_is_refused_and_the_connection_stays() -> None:
    async with (
        serving(ListFeed(trades(1))) as server,
        running(server.url, limits=LinkLimits(max_frame_bytes=1_000)) as session,
    ):
        await take(session, 1)
        await fault(server, kind="huge", bytes=10_000_000)
        await fault(server, kind="garbage", text="after")
        assert [frame for _, frame in await take(session, 1)] == [b"after"]
        (refused,) = session.take_refused()
        assert refused.reason == "frame_too_large"
        assert refused.raw.startswith(b'{"stream":"huge"')
        assert len(refused.raw) == 65_536
        assert session.take_refused() == []
        assert (session.stats.too_large, server.connections) == (1, 1)


async def test_a_frame_beyond_all_bounds_costs_the_connection_not_the_feed() -> None:
    clock = ManualClock()
    async with serving(ListFeed(trades(1))) as server, running(server.url, clock=clock) as session:
        await take(session, 1)
        await fault(server, kind="huge", bytes=FRAME_CEILING_BYTES + 1)
        await eventually(lambda: session.stats.reconnects["frame_too_large"] == 1)
        await eventually(lambda: session.stats.state == "waiting")
        await clock.advance(1)
        assert ids(await take(session, 1)) == [1]
        assert [refused.reason for refused in session.take_refused()] == ["frame_too_large"]


async def test_garbage_is_handed_on_as_it_came() -> None:
    async with serving(ListFeed([])) as server, running(server.url) as session:
        await eventually(lambda: server.clients)
        await fault(server, kind="raw", hex="ff00fe")
        assert [frame for _, frame in await take(session, 1)] == [b"\xff\x00\xfe"]
        assert session.stats.connected


async def test_an_old_connection_is_replaced_without_losing_a_frame() -> None:
    server_clock, clock = ManualClock(), ManualClock()
    feed = ListFeed(trades(400, every_ms=10))
    # The two clocks are apart: pings by one would come too often by the other.
    limits = LinkLimits(ping_interval_s=1e6, stale_after_s=0)
    async with (
        serving(feed, speed=1.0, mode="by-clock", clock=server_clock) as server,
        running(server.url, clock=clock, max_lifetime_s=3_600, limits=limits) as session,
    ):
        received = await take(session, 1)
        for _ in range(3):
            await server_clock.advance(0.5)
            connections = server.connections
            await clock.advance(3_600)
            await eventually(lambda n=connections: server.connections == n + 1)
            await eventually(lambda: len(server.clients) == 2)
            await server_clock.advance(0.5)
            await eventually(lambda: len(server.clients) == 1)
        await server_clock.advance(5)
        await eventually(lambda: server.finished)
        while not received or ids(received[-1:]) != [400]:
            received += await take(session, 1)
        assert session.stats.reconnects == {"rotation": 3}
        newest = 0
        for ident in ids(received):
            assert ident <= newest + 1  # repeats, but never a jump
            newest = max(newest, ident)
        assert newest == 400


async def test_a_rotation_on_a_quiet_feed_waits_only_so_long() -> None:
    clock = ManualClock()
    async with (
        serving(ListFeed([]), clock=clock) as server,
        running(server.url, clock=clock, max_lifetime_s=100, handover_s=5) as session,
    ):
        await eventually(lambda: server.clients)
        for _ in range(5):
            pongs = session.stats.pongs
            await clock.advance(20)
            await eventually(lambda n=pongs: session.stats.pongs > n)
        await eventually(lambda: len(server.clients) == 2)
        await clock.advance(5)
        await eventually(lambda: len(server.clients) == 1)
        await eventually(lambda: session.stats.reconnects["rotation"] == 1)
        await fault(server, kind="garbage", text="x")
        assert [frame for _, frame in await take(session, 1)] == [b"x"]


async def test_when_no_new_connection_can_be_had_the_old_one_stays() -> None:
    clock = ManualClock()
    async with (
        serving(ListFeed(trades(1))) as server,
        running(server.url, clock=clock, max_lifetime_s=15, reconnect_max_s=5) as session,
    ):
        await take(session, 1)
        server.faults.refusals = 1
        await clock.advance(15)
        await eventually(lambda: session.stats.reconnects["connect_failed"] == 1)
        await fault(server, kind="garbage", text="x")
        assert [frame for _, frame in await take(session, 1)] == [b"x"]
        await clock.advance(5)
        await eventually(lambda: session.stats.reconnects["rotation"] == 1)


async def test_a_graceful_close_hands_over_everything_received() -> None:
    frames = trades(50_000)
    async with serving(ListFeed(frames)) as server:
        session = Session(
            BinanceProtocol(STREAMS),
            SessionConfig((server.url,), queue_frames=200),
            AiohttpConnector(),
            clock=ManualClock(),
        )
        task = asyncio.create_task(session.run())
        received = await take(session, 1_000)
        closing = asyncio.create_task(session.close())
        while batch := await session.batch(500):
            received += batch
        await closing
        await task
        got = ids(received)
        assert got == list(range(1, len(got) + 1))
        assert len(got) == session.stats.frames
        assert session.stats.state == "closed"
        assert await session.batch(1) == []


async def test_a_close_while_waiting_or_connecting_is_immediate() -> None:
    clock = ManualClock()
    async with running("ws://127.0.0.1:1", clock=clock) as session:
        await eventually(lambda: session.stats.state == "waiting")
        await session.close()
        assert session.stats.state == "closed"


async def test_a_session_that_never_ran_can_be_closed() -> None:
    session = Session(
        BinanceProtocol(STREAMS), SessionConfig(("ws://127.0.0.1:1",)), AiohttpConnector()
    )
    await session.close()
    assert await session.batch(1) == []


async def test_streams_beyond_the_address_are_subscribed_within_the_limit() -> None:
    streams = tuple(f"symbol{n}usdt@bookTicker" for n in range(1_000))
    clock = ManualClock()
    async with (
        serving(ListFeed([]), clock=clock) as server,
        running(server.url, clock=clock, streams=streams) as session,
    ):
        for sent in range(1, 9):
            await eventually(lambda n=sent: session.queued == min(n, 4))
            await clock.advance(0.25)
            if session.queued == 4:
                break
        (client,) = server.clients
        assert tuple(client.subscriptions.streams) == streams
        answers = [json.loads(frame) for _, frame in await take(session, 4)]
        assert answers == [{"result": None, "id": n} for n in range(1, 5)]


async def test_a_wish_of_the_exchange_to_wait_is_granted() -> None:
    async def banned(_: web.Request) -> web.Response:
        return web.Response(status=429, headers={"Retry-After": "120"})

    app = web.Application()
    app.router.add_get("/stream", banned)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with running(f"ws://127.0.0.1:{runner.addresses[0][1]}") as session:
            await eventually(lambda: session.stats.state == "waiting")
            assert session.stats.backoff_s == 120
            assert "429" in session.stats.last_error
    finally:
        await runner.cleanup()


async def test_a_rotation_waits_for_a_slow_taker_and_loses_nothing() -> None:
    server_clock, clock = ManualClock(), ManualClock()
    limits = LinkLimits(ping_interval_s=1e6, stale_after_s=0)
    feed = ListFeed(trades(20_000), [trade(20_001), trade(20_002, at_ms=60_000)])
    async with (
        serving(feed, speed=1.0, mode="by-clock", clock=server_clock) as server,
        running(
            server.url, clock=clock, limits=limits, max_lifetime_s=3_600, queue_frames=50
        ) as session,
    ):
        await eventually(lambda: server.played.count() == 20_001)
        await eventually(lambda: session.stats.waits_for_room)
        await clock.advance(3_600)
        await eventually(lambda: server.connections == 2)
        for _ in range(10):  # handover and close limits pass while nobody takes anything
            await clock.advance(5)
        received = await take(session, 20_001)
        assert ids(received) == list(range(1, 20_002))
        await clock.advance(5)
        await eventually(lambda: session.stats.reconnects["rotation"] == 1)
        await server_clock.advance(60)
        assert ids(await take(session, 1)) == [20_002]


async def test_an_address_that_never_answers_is_given_up_in_time() -> None:
    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    writers: list[asyncio.StreamWriter] = []
    clock = ManualClock()
    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"ws://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with listener, running(url, clock=clock, connect_timeout_s=10) as session:
        await eventually(lambda: writers)
        await clock.advance(10)
        await eventually(lambda: session.stats.state == "waiting")
        assert "did not answer within 10 s" in session.stats.last_error
        await clock.advance(session.stats.backoff_s)
        await eventually(lambda: len(writers) == 2)
        await session.close()  # does not wait for the answer either
        assert session.stats.state == "closed"
    for writer in writers:
        writer.close()


async def test_a_bug_does_not_end_the_feed() -> None:
    class Broken(AiohttpConnector):
        failures = 1

        async def connect(self, url: str) -> Socket:
            if self.failures:
                self.failures -= 1
                raise KeyError("a bug")
            return await super().connect(url)

    clock = ManualClock()
    async with serving(ListFeed(trades(1))) as server:
        session = Session(
            BinanceProtocol(STREAMS), SessionConfig((server.url,)), Broken(), clock=clock, rng=Top()
        )
        task = asyncio.create_task(session.run())
        await eventually(lambda: session.stats.state == "waiting")
        assert session.stats.reconnects == {"error": 1}
        await clock.advance(1)
        assert ids(await take(session, 1)) == [1]
        await session.close()
        await task
