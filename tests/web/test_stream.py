"""The push interface: what is there, then what comes, as events and over a WebSocket."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import aiohttp
import pyarrow as pa
import pytest
from aiohttp import web

from k2.errors import K2Error, LakeError, Overloaded, QueryTimeout
from k2.query.stream import Follower, News
from k2.query.tail import TailView
from k2.testing.clock import ManualClock, eventually
from k2.web.resources import stream
from tests.query.rows import T0_US, place, rows
from tests.web.api import KEY, Api


async def events(response: aiohttp.ClientResponse, count: int) -> list[tuple[str, Any]]:
    """The next `count` Server-Sent Events: (name, data)."""
    found: list[tuple[str, Any]] = []
    name = ""
    async with asyncio.timeout(10):
        while len(found) < count:
            line = (await response.content.readline()).decode().rstrip("\n")
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                found.append((name, json.loads(line[6:])))
    return found


def produce(api: Api, *sequences: int, symbols: str = "BTCUSDT") -> None:
    stamps = [T0_US + sequence * 1_000_000 for sequence in sequences]
    api.platform.produce(rows(sequences, stamps, symbols=symbols), place())


def numbers(body: dict[str, Any]) -> list[int]:
    return [row["platform_sequence"] for row in body["data"]]


async def test_events_begin_with_the_newest_rows_and_go_on_with_new_ones(api: Api) -> None:
    async with api.client.get("/v1/stream?snapshot=2", headers=KEY) as response:
        assert response.content_type == "text/event-stream"
        ((kind, body),) = await events(response, 1)
        assert (kind, numbers(body)) == ("snapshot", [13, 14])
        produce(api, 15, 16)
        ((kind, body),) = await events(response, 1)
        assert (kind, numbers(body)) == ("rows", [15, 16])
        assert body["data"][0]["price"] == "3.75", "decimals as text"


async def test_a_socket_gets_the_same_and_only_its_symbols(api: Api) -> None:
    url = "/v1/stream?symbols=BTCUSDT&snapshot=0"
    async with api.client.ws_connect(url, headers=KEY) as socket:
        assert (await socket.receive_json(timeout=10))["type"] == "snapshot"
        produce(api, 15, symbols="ETHUSDT")
        produce(api, 16)
        message = await socket.receive_json(timeout=10)
        assert (message["type"], numbers(message)) == ("rows", [16])
    produce(api, 17)  # nobody listens any more, and nothing is left behind
    async with api.client.ws_connect(url, headers=KEY) as socket:
        assert numbers(await socket.receive_json(timeout=10)) == []


async def test_many_rows_are_looked_through_off_the_loop(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_loop: list[tuple[str, bool]] = []
    loop_thread = threading.get_ident()

    class Watched(Follower):
        def begin(self, view: TailView, newest: int) -> pa.Table:
            on_loop.append(("begin", threading.get_ident() == loop_thread))
            return super().begin(view, newest)

        def news(self, view: TailView) -> News:
            on_loop.append((f"{self.waiting(view)}", threading.get_ident() == loop_thread))
            return super().news(view)

    monkeypatch.setattr(stream, "Follower", Watched)
    async with api.client.get("/v1/stream?snapshot=2", headers=KEY) as response:
        await events(response, 1)
        produce(api, *range(15, 415))
        ((_, many),) = await events(response, 1)
        produce(api, 415)
        ((_, one),) = await events(response, 1)
    assert (len(many["data"]), numbers(one)) == (400, [415])
    assert on_loop == [("begin", False), ("400", False), ("1", True)]


class Failing(Follower):
    """A follower that finds news once, and then what `error` says."""

    error: Exception

    def news(self, view: TailView) -> News:
        raise self.error


FAILURES = [
    (Overloaded("the pool is full"), "overloaded", 1013),
    (QueryTimeout("too slow"), "query_timeout", 1013),
    (LakeError("the catalog is away: " + "x" * 200), "lake", 1013),
    (K2Error("a secret"), "internal", 1011),
    (ZeroDivisionError("a secret"), "internal", 1011),
]


@pytest.mark.parametrize(("error", "code", "closed"), FAILURES)
async def test_a_stream_that_fails_says_so_and_ends(
    api: Api, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str, closed: int
) -> None:
    """A socket that nobody pushes to any more must not stay open, answering pings."""
    monkeypatch.setattr(Failing, "error", error, raising=False)
    monkeypatch.setattr(stream, "Follower", Failing)
    async with api.client.ws_connect("/v1/stream", headers=KEY) as socket:
        assert (await socket.receive_json(timeout=10))["type"] == "snapshot"
        produce(api, 15)
        body = await socket.receive_json(timeout=10)
        assert (body["type"], body["error"]) == ("error", code)
        assert body.get("retry_after_s") == (5 if closed == 1013 else None)
        ended = await socket.receive(timeout=10)
        assert (ended.type, ended.data) == (aiohttp.WSMsgType.CLOSE, closed)
        assert body["message"].startswith(ended.extra)
    async with api.client.get("/v1/stream", headers=KEY) as response:
        await events(response, 1)
        produce(api, 16)
        async with asyncio.timeout(10):
            rest = (await response.content.read()).decode()
    name, data = rest.strip().split("\n")[-2:]
    assert name == "event: error", "and no second answer behind it"
    assert json.loads(data.removeprefix("data: "))["error"] == code
    assert "secret" not in rest


async def test_a_quiet_stream_has_heartbeats(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    monkeypatch.setattr(stream, "_CLOCK", clock)
    for data_type in ("trades", "candles"):
        url = f"/v1/stream?data_type={data_type}&snapshot=1"
        async with api.client.get(url, headers=KEY) as response:
            await events(response, 1)
            await clock.advance(9.5)
            await clock.advance(16)
            assert await events(response, 2) == [("heartbeat", {})] * 2, "after 10 s and 20 s"
            produce(api, 15 + (data_type == "candles"))
            await clock.advance(1)
            ((kind, _),) = await events(response, 1)
            assert kind == "rows"


async def test_a_slow_reader_is_told_how_many_rows_it_lacks(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_MOST", 3)
    async with api.client.get("/v1/stream?snapshot=1", headers=KEY) as response:
        await events(response, 1)
        produce(api, *range(15, 25))
        skipped, newest = await events(response, 2)
    assert skipped == ("skipped", {"count": 7})
    assert (newest[0], numbers(newest[1])) == ("rows", [22, 23, 24])


async def never(*_given: object) -> None:
    await asyncio.Event().wait()


async def test_a_reader_that_takes_nothing_is_cut_off(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stream._WRITE_S == 30
    monkeypatch.setattr(stream, "_WRITE_S", 0.01)
    readers = api.client.server.app[stream.READERS].tasks
    monkeypatch.setattr(web.StreamResponse, "write", never)
    async with api.client.get("/v1/stream", headers=KEY) as response:
        with pytest.raises(aiohttp.ClientError):
            await response.content.read()
    monkeypatch.setattr(web.WebSocketResponse, "send_str", never)
    async with api.client.ws_connect("/v1/stream", headers=KEY) as socket:
        gone = await socket.receive(timeout=10)
        assert gone.type is aiohttp.WSMsgType.CLOSED
    await eventually(lambda: not readers)


async def test_so_many_may_listen(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stream._MOST_READERS == 200
    monkeypatch.setattr(stream, "_MOST_READERS", 1)
    readers = api.client.server.app[stream.READERS].tasks
    async with api.client.ws_connect("/v1/stream", headers=KEY):
        async with api.client.get("/v1/stream", headers=KEY) as response:
            assert (response.status, response.headers["Retry-After"]) == (429, "5")
        with pytest.raises(aiohttp.WSServerHandshakeError, match="429"):
            await api.client.ws_connect("/v1/stream", headers=KEY)
    await eventually(lambda: not readers)
    async with api.client.ws_connect("/v1/stream", headers=KEY) as socket:
        assert (await socket.receive_json(timeout=10))["type"] == "snapshot", "room again"


async def test_quotes_have_their_own(api: Api) -> None:
    async with api.client.get("/v1/stream?data_type=quotes", headers=KEY) as response:
        ((kind, _),) = await events(response, 1)
        assert kind == "snapshot"


@pytest.mark.parametrize(
    ("query", "named"), [("data_type=x", "data_type"), ("snapshot=-1", "snapshot"), ("a=1", "a")]
)
async def test_what_is_wrong_is_named(api: Api, query: str, named: str) -> None:
    async with api.client.get(f"/v1/stream?{query}", headers=KEY) as response:
        assert response.status == 422
        assert (await response.json())["detail"]["parameter"] == named


async def test_it_needs_a_key(api: Api) -> None:
    async with api.client.get("/v1/stream") as response:
        assert response.status == 401


async def test_listeners_do_not_hold_up_a_server_that_stops(api: Api) -> None:
    async with api.client.get("/v1/stream", headers=KEY) as response:
        await events(response, 1)
        async with asyncio.timeout(5):
            await api.client.server.close()
