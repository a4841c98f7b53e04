"""The server as a client meets it: real sockets, injected clock."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType

from k2.errors import ConfigError
from k2.exchange.binance import bare
from k2.exchange.capture import read_capture
from k2.exchange.connection import PingPolicy, frame_header
from k2.exchange.feed import CaptureFeed
from k2.exchange.server import ExchangeServer
from k2.testing.clock import ManualClock, eventually
from tests import data
from tests.exchange.feeds import ListFeed, book, serving, trade

BTC = "/stream?streams=btcusdt@trade/btcusdt@bookTicker"


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def receive(ws: Any, count: int) -> list[bytes]:
    return [(await ws.receive_str()).encode() for _ in range(count)]


async def get(http: aiohttp.ClientSession, server: ExchangeServer, path: str) -> Any:
    async with http.get(f"http://127.0.0.1:{server.port}{path}") as reply:
        assert reply.status == 200
        return await reply.json()


async def fault(http: aiohttp.ClientSession, server: ExchangeServer, **body: Any) -> int:
    async with http.post(f"http://127.0.0.1:{server.port}/k2/fault", json=body) as reply:
        return reply.status


async def test_recorded_captures_arrive_whole_in_order_and_byte_exact(
    http: aiohttp.ClientSession,
) -> None:
    data.require(data.BTC_0808, data.BTC_0809)
    wanted = [
        frame.data
        for path in (data.BTC_0808, data.BTC_0809)
        for frame in read_capture(path)
        if frame.stream in ("btcusdt@trade", "btcusdt@bookTicker")
    ]
    async with (
        serving(CaptureFeed((data.BTC_0808, data.BTC_0809))) as server,
        http.ws_connect(server.url + BTC) as ws,
    ):
        assert await receive(ws, len(wanted)) == wanted
        await eventually(lambda: server.finished)
        status = await get(http, server, "/k2/status")
    assert status["state"] == "finished"
    assert status["frames_sent"] == data.TRADES + data.QUOTES
    assert (status["trades_sent"], status["quotes_sent"]) == (data.TRADES, data.QUOTES)
    assert status["streams"]["btcusdt@trade"] == {
        "kind": "trade",
        "count": data.TRADES,
        "first_id": data.FIRST_TRADE,
        "last_id": data.LAST_TRADE,
    }


async def test_each_client_has_its_own_replay(http: aiohttp.ClientSession) -> None:
    frames = [trade(n) for n in range(1, 4)] + [book(9)]
    async with serving(ListFeed(frames)) as server:
        for _ in range(2):
            async with http.ws_connect(f"{server.url}/stream?streams=btcusdt@trade") as ws:
                assert await receive(ws, 3) == [frame.data for frame in frames[:3]]
        assert server.connections == 2


async def test_raw_addresses_deliver_the_bare_payload(http: aiohttp.ClientSession) -> None:
    async with (
        serving(ListFeed([trade(1)])) as server,
        http.ws_connect(f"{server.url}/ws/btcusdt@trade") as ws,
    ):
        (payload,) = await receive(ws, 1)
    assert payload == bare(trade(1).data)
    assert json.loads(payload)["t"] == 1


async def test_a_replay_begins_with_the_first_subscription(http: aiohttp.ClientSession) -> None:
    async with (
        serving(ListFeed([trade(1), book(2)])) as server,
        http.ws_connect(f"{server.url}/stream") as ws,
    ):
        assert server.state == "waiting"
        await ws.send_str('{"method":"LIST_SUBSCRIPTIONS","id":1}')
        assert await receive(ws, 1) == [b'{"result":[],"id":1}']
        await ws.send_str('{"method":"SUBSCRIBE","params":["btcusdt@trade","no@trade"],"id":2}')
        assert await receive(ws, 2) == [b'{"result":null,"id":2}', trade(1).data]


async def test_by_the_clock_who_is_away_misses_what_is_sent(http: aiohttp.ClientSession) -> None:
    clock = ManualClock()
    feed = ListFeed([trade(n, at_ms=1_000 * n) for n in range(1, 6)])
    async with serving(feed, speed=1.0, mode="by-clock", clock=clock) as server:
        async with http.ws_connect(server.url + BTC) as ws:
            assert await receive(ws, 1) == [trade(1, at_ms=1_000).data]
        await eventually(lambda: not server.clients)
        await clock.advance(2.0)
        async with http.ws_connect(server.url + BTC) as ws:
            await eventually(lambda: server.clients)
            await clock.advance(2.0)
            sent = [trade(4, at_ms=4_000).data, trade(5, at_ms=5_000).data]
            assert await receive(ws, 2) == sent
        status = server.status()
        await eventually(lambda: server.finished)
    assert status["played"]["btcusdt@trade"]["count"] == 5
    assert status["trades_sent"] == 3


async def test_by_the_clock_at_once_waits_for_nobody() -> None:
    feed = ListFeed([trade(1), trade(2)])
    async with serving(feed, mode="by-clock", wait_for_client=False) as server:
        await eventually(lambda: server.finished)
        assert server.played.count() == 2
        assert server.sent.count() == 0


async def test_several_clients_by_the_clock_get_the_same(http: aiohttp.ClientSession) -> None:
    later = [trade(n, at_ms=1_000 + n) for n in range(2_000)]
    clock = ManualClock()
    feed = ListFeed([book(1), *later])
    async with (
        serving(feed, speed=1.0, mode="by-clock", clock=clock) as server,
        http.ws_connect(f"{server.url}/stream?streams=btcusdt@trade") as one,
        http.ws_connect(f"{server.url}/ws/btcusdt@trade") as two,
    ):
        await eventually(lambda: len(server.clients) == 2 and server.played.count() == 1)
        await clock.advance(3)
        assert await receive(one, 2_000) == [frame.data for frame in later]
        assert await receive(two, 2_000) == [bare(frame.data) for frame in later]


async def test_sending_times_are_kept(http: aiohttp.ClientSession) -> None:
    clock = ManualClock(start_us=5_000_000)
    async with (
        serving(ListFeed([trade(7), book(8)]), clock=clock, sends=10) as server,
        http.ws_connect(server.url + BTC) as ws,
    ):
        await receive(ws, 2)
        reply = await get(http, server, "/k2/sends?stream=btcusdt@trade")
    assert reply == {"stream": "btcusdt@trade", "sends": [[7, 5_000_000_000]]}


async def test_too_many_messages_cut_the_connection(http: aiohttp.ClientSession) -> None:
    async with (
        serving(ListFeed([]), clock=ManualClock()) as server,
        http.ws_connect(f"{server.url}/stream") as ws,
    ):
        for number in range(6):
            await ws.send_str(f'{{"method":"LIST_SUBSCRIPTIONS","id":{number}}}')
        await receive(ws, 5)
        assert (await ws.receive()).type is WSMsgType.CLOSE
        assert ws.close_code == 1008


async def test_a_client_that_does_not_answer_pings_is_cut(http: aiohttp.ClientSession) -> None:
    clock = ManualClock()
    pings = PingPolicy(interval_s=20, timeout_s=60)
    async with (
        serving(ListFeed([]), clock=clock, pings=pings) as server,
        http.ws_connect(f"{server.url}/ws", autoping=False) as ws,
    ):
        for _ in range(3):
            await clock.advance(20)
            assert (await ws.receive()).type is WSMsgType.PING
        await clock.advance(20)
        goodbye = await ws.receive()
        assert (goodbye.type, goodbye.data) == (WSMsgType.CLOSE, 1008)


async def test_pings_are_answered_with_their_payload(http: aiohttp.ClientSession) -> None:
    async with (
        serving(ListFeed([])) as server,
        http.ws_connect(f"{server.url}/ws", autoping=False) as ws,
    ):
        await ws.ping(b"1723161254")
        message = await ws.receive()
        assert (message.type, message.data) == (WSMsgType.PONG, b"1723161254")


async def test_rest_basics(http: aiohttp.ClientSession) -> None:
    async with serving(ListFeed([]), clock=ManualClock(start_us=1_234_000)) as server:
        assert await get(http, server, "/api/v3/ping") == {}
        assert await get(http, server, "/api/v3/time") == {"serverTime": 1_234}
        info = await get(http, server, "/api/v3/exchangeInfo")
    assert [(s["symbol"], s["baseAsset"], s["quoteAsset"]) for s in info["symbols"]] == [
        ("BTCUSDT", "BTC", "USDT")
    ]


async def test_faults_on_single_frames(http: aiohttp.ClientSession) -> None:
    async with serving(ListFeed([trade(n) for n in range(1, 6)])) as server:
        assert await fault(http, server, kind="drop_ids", ids=[2, 3]) == 200
        assert await fault(http, server, kind="duplicate", n=1) == 200
        async with http.ws_connect(server.url + BTC) as ws:
            got = [json.loads(frame)["data"]["t"] for frame in await receive(ws, 4)]
        assert got == [1, 1, 4, 5]
        assert server.status()["trades_sent"] == 4


async def test_neighbours_change_places(http: aiohttp.ClientSession) -> None:
    frames = [trade(n) for n in range(1, 4)] + [book(9)] + [trade(n) for n in range(4, 7)]
    async with serving(ListFeed(frames)) as server:
        assert await fault(http, server, kind="reorder", n=2) == 200
        async with http.ws_connect(f"{server.url}/stream?streams=btcusdt@trade") as ws:
            got = [json.loads(frame)["data"]["t"] for frame in await receive(ws, 6)]
    assert got == [2, 1, 4, 3, 5, 6]


async def test_old_frames_are_sent_again(http: aiohttp.ClientSession) -> None:
    async with (
        serving(ListFeed([trade(n) for n in range(1, 6)]), mode="by-clock") as server,
        http.ws_connect(server.url + BTC) as ws,
    ):
        await receive(ws, 5)
        assert await fault(http, server, kind="resend", n=2) == 200
        got = [json.loads(frame)["data"]["t"] for frame in await receive(ws, 2)]
    assert got == [1, 2]


async def test_a_connection_ends_in_the_middle_of_a_frame(http: aiohttp.ClientSession) -> None:
    async with serving(ListFeed([])) as server, http.ws_connect(server.url + BTC) as ws:
        await eventually(lambda: server.clients)
        assert await fault(http, server, kind="cut") == 200
        message = await ws.receive()
    assert message.type in (WSMsgType.CLOSED, WSMsgType.ERROR, WSMsgType.CLOSING)
    assert ws.close_code == 1006


async def test_injected_frames(http: aiohttp.ClientSession) -> None:
    async with (
        serving(ListFeed([])) as server,
        http.ws_connect(server.url + BTC, max_msg_size=2**24, decode_text=False) as ws,
    ):
        await eventually(lambda: server.clients)
        assert await fault(http, server, kind="garbage", text="{oops") == 200
        assert await fault(http, server, kind="raw", hex="ff00") == 200
        assert await fault(http, server, kind="huge", bytes=10_000_000) == 200
        received = [(await ws.receive()).data for _ in range(3)]
    assert received[:2] == [b"{oops", b"\xff\x00"]
    assert len(received[2]) > 10_000_000


async def test_disconnect_stall_and_refusal(http: aiohttp.ClientSession) -> None:
    clock = ManualClock()
    async with serving(ListFeed([trade(1)]), clock=clock) as server:
        await fault(http, server, kind="stall", seconds=5)
        async with http.ws_connect(server.url + BTC, autoping=False) as ws:
            await ws.ping()
            await eventually(lambda: server.started_at_us)
            assert server.faults.deaf
            assert server.sent.count() == 0
            await clock.advance(5)
            assert await receive(ws, 1) == [trade(1).data]
            await fault(http, server, kind="disconnect", code=1012)
            goodbye = await ws.receive()
            assert (goodbye.type, goodbye.data) == (WSMsgType.CLOSE, 1012)
        async with http.ws_connect(server.url + BTC) as ws:
            await fault(http, server, kind="disconnect", abort=True)
            while (await ws.receive()).type is WSMsgType.TEXT:
                pass
            assert ws.closed
        await fault(http, server, kind="refuse", n=1)
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await http.ws_connect(server.url + BTC)
        assert caught.value.status == 503
        async with http.ws_connect(server.url + BTC):
            pass


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "nope"},
        {"kind": "stall", "seconds": "x"},
        {"kind": "stall", "seconds": True},
        {"kind": "stall", "seconds": -1},
        {"kind": "drop_ids", "ids": ["x"]},
        {"kind": "raw", "hex": "zz"},
        {"kind": "duplicate", "count": 1},
        [],
    ],
)
async def test_impossible_faults_are_refused(http: aiohttp.ClientSession, body: Any) -> None:
    async with (
        serving(ListFeed([])) as server,
        http.post(f"http://127.0.0.1:{server.port}/k2/fault", json=body) as reply,
    ):
        assert reply.status == 400
        assert "allowed" in (await reply.json())["error"]


@pytest.mark.parametrize("mode", ["per-connection", "by-clock"])
async def test_a_damaged_capture_fails_the_server_and_says_so(
    http: aiohttp.ClientSession, tmp_path: Path, mode: str
) -> None:
    path = tmp_path / "half.gz"
    lines = b"".join(b"%d %s\n" % (frame.recv_ns, frame.data) for frame in map(trade, range(9_000)))
    path.write_bytes(gzip.compress(lines)[:-500])
    async with (
        serving(CaptureFeed((path,)), mode=mode) as server,
        http.ws_connect(server.url + BTC) as ws,
    ):
        await ws.receive()
        await eventually(server.failed.is_set)
        status = await get(http, server, "/k2/status")
    assert (status["state"], status["finished"]) == ("failed", False)
    assert str(path) in status["error"]


async def test_a_port_in_use_is_a_clear_error() -> None:
    async with serving(ListFeed([])) as server:
        second = ExchangeServer(ListFeed([]), port=server.port)
        with pytest.raises(ConfigError, match="--port"):
            await second.start()


async def test_a_slow_client_holds_its_own_replay_back(http: aiohttp.ClientSession) -> None:
    frames = [trade(n) for n in range(200_000)]
    async with serving(ListFeed(frames)) as server:
        async with http.ws_connect(server.url + BTC) as ws:
            await eventually(lambda: any(client.backlog_bytes for client in server.clients))
            sent = server.sent.count()
            assert sent < len(frames)
            assert all(client.backlog_bytes < 1_000_000 for client in server.clients)
            got = await receive(ws, len(frames))
        assert json.loads(got[-1])["data"]["t"] == 199_999


def test_frame_headers_follow_the_rfc() -> None:
    assert frame_header(125) == b"\x81\x7d"
    assert frame_header(126) == b"\x81\x7e\x00\x7e"
    assert frame_header(65_535) == b"\x81\x7e\xff\xff"
    assert frame_header(65_536) == b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"
