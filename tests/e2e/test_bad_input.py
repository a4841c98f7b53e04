"""Bad input of every kind: refused with a reason, counted, kept; the stream goes on."""

from __future__ import annotations

import io
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from k2.settings import LOCAL_API_KEY
from k2.topics import BINANCE_QUOTES
from tests.e2e.harness import Stack, dead_letters, gap_ranges, trade_ids

pytestmark = pytest.mark.timeout(120)

FIRST_ID = 1_000
SYMBOLS = "BTCUSDT,ETHUSDT,SOLUSDT"


def trade(**changes: Any) -> bytes:
    """A trade of ETHUSDT in a combined stream; None takes a field out."""
    now_ms = time.time_ns() // 1_000_000
    data = {
        "e": "trade",
        "E": now_ms,
        "s": "ETHUSDT",
        "t": 1,
        "p": "2680.14000000",
        "q": "0.50000000",
        "T": now_ms,
        "m": True,
        "M": True,
    }
    stream = changes.pop("stream", "ethusdt@trade")
    kept = {name: value for name, value in {**data, **changes}.items() if value is not None}
    return json.dumps({"stream": stream, "data": kept}).encode()


def quote(**changes: Any) -> bytes:
    data = {"u": 1, "s": "ETHUSDT", "b": "1", "B": "1", "a": "2", "A": "1", **changes}
    return json.dumps({"stream": "ethusdt@bookTicker", "data": data}).encode()


#: What the exchange sends, and the reason it is refused for: by the source …
FRAMES: list[tuple[bytes, str]] = [
    (b"{not json", "bad_json"),
    (b"\xff\xfe\x00", "bad_json"),
    (b'{"a":' * 3_000, "bad_json"),
    (b"[1, 2, 3]", "unknown_frame"),
    (b"null", "unknown_frame"),
    (b"{}", "unknown_frame"),
    (b'{"code": 2, "msg": "' + b"x" * 300_000 + b'"}', "exchange_error"),
    (b'{"stream":"ethusdt@trade"}', "bad_fields"),
    (b'{"stream":"ethusdt@trade","data":[]}', "bad_fields"),
    (trade(p=None), "bad_fields"),
    (trade(t=None), "bad_fields"),
    (trade(T=None), "bad_fields"),
    (trade(p=2680.14), "bad_fields"),
    (trade(q=[]), "bad_fields"),
    (trade(t="17"), "bad_fields"),
    (trade(t=1.5), "bad_fields"),
    (trade(t=10**30), "bad_fields"),
    (trade(T=10**18), "bad_fields"),
    (trade(m="yes"), "bad_fields"),
    (quote(u="9"), "bad_fields"),
    (trade(s="XYZUSDT", stream="xyzusdt@trade"), "unknown_symbol"),
    (trade(s="BTCUSDT"), "symbol_mismatch"),
]
#: … and by validation.
RECORDS: list[tuple[bytes, str]] = [
    (trade(p="-1"), "PRICE_NOT_POSITIVE"),
    (trade(p="0.00000000"), "PRICE_NOT_POSITIVE"),
    (trade(q="-0.5"), "QUANTITY_NOT_POSITIVE"),
    (trade(q="0"), "QUANTITY_NOT_POSITIVE"),
    (trade(p=""), "BAD_DECIMAL"),
    (trade(p="NaN"), "BAD_DECIMAL"),
    (trade(p="Infinity"), "BAD_DECIMAL"),
    (trade(p="1e400"), "BAD_DECIMAL"),
    (trade(p="9" * 400_000), "BAD_DECIMAL"),
    (trade(q="0.00000000001"), "BAD_DECIMAL"),
    (trade(p="1\x00"), "BAD_DECIMAL"),
    (trade(t=-5), "ID_NOT_INTEGER"),
    (trade(T=-1), "TIMESTAMP_OUT_OF_RANGE"),
    (trade(T=2**53), "TIMESTAMP_OUT_OF_RANGE"),
    (trade(T=1), "TIMESTAMP_OUT_OF_RANGE"),
]
QUOTES: list[tuple[bytes, str]] = [
    (quote(b="-1"), "BID_ASK_NEGATIVE"),
    (quote(A="-0.1"), "BID_ASK_NEGATIVE"),
    (quote(a="abc"), "BAD_DECIMAL"),
    (quote(u=-3), "ID_NOT_INTEGER"),
]


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    environment = {"K2_BINANCE_SYMBOLS": SYMBOLS, "K2_SINK_INTERVAL_S": "0.5"}
    async with Stack(tmp_path, environment) as made:
        simulate = ["simulate", "--symbols", "BTCUSDT", "--rate", "200"]
        await made.start_exchange(*simulate, "--first-id", str(FIRST_ID))
        await made.start_worker()
        await made.until("trades flow", lambda s: s["sink"]["tables"]["trades"]["rows"] > 0)
        yield made


def session(status: dict[str, Any]) -> dict[str, Any]:
    (only,) = status["source"]["sessions"]
    return only


async def goes_on(stack: Stack) -> dict[str, Any]:
    """Trades that the exchange sends from now on are stored."""
    status = await stack.client.status()
    seen = status["source"]["trades"]
    rows = status["sink"]["tables"]["trades"]["rows"]
    return await stack.until(
        "the stream goes on",
        lambda s: (
            s["source"]["trades"] > seen + 20 and s["sink"]["tables"]["trades"]["rows"] > rows
        ),
    )


async def test_bad_frames_are_refused_with_their_reason_and_the_stream_goes_on(
    stack: Stack,
) -> None:
    for raw, _ in FRAMES + RECORDS + QUOTES:
        await stack.fault("raw", hex=raw.hex())
    refused, records = len(FRAMES), len(RECORDS) + len(QUOTES)
    await stack.until(
        "all are refused",
        lambda s: s["source"]["refused"] == refused and s["validate"]["dead_letters"] == records,
    )
    status = await goes_on(stack)
    assert session(status)["reconnects"] == {}, "not even the connection suffers"
    code, health = await stack.get("/health")
    assert (code, health["data"]["status"]) == (200, "healthy")
    metrics = await stack.metrics()
    for reason, count in Counter(reason for _, reason in FRAMES).items():
        assert metrics[_errors(reason)] == count
    await stack.stop_exchange()
    assert await stack.stop_worker() == 0

    data = stack.directory / "data"
    letters = dead_letters(data)
    assert Counter(letter["reason"] for letter in letters) == Counter(
        reason for _, reason in FRAMES + RECORDS
    )
    assert {letter["value"] for letter in letters if letter["offset"] < 0} == {
        raw for raw, _ in FRAMES
    }, "frames are kept as they came"
    assert all(letter["detail"] for letter in letters)
    assert Counter(letter["reason"] for letter in dead_letters(data, BINANCE_QUOTES)) == Counter(
        reason for _, reason in QUOTES
    )
    ids = trade_ids(data)
    assert ids == list(range(FIRST_ID, FIRST_ID + len(ids))), "every good trade, once"
    assert gap_ranges(data) == []


async def test_a_frame_of_ten_megabytes_is_refused_and_the_connection_stays(stack: Stack) -> None:
    await stack.fault("huge", bytes=10_000_000)
    await stack.until("it is refused", lambda s: s["source"]["refused"] == 1)
    status = await goes_on(stack)
    assert session(status)["reconnects"] == {}
    # Beyond what one connection may cost in memory it is given up, and made anew.
    await stack.fault("huge", bytes=40_000_000)
    await stack.until("it is refused too", lambda s: s["source"]["refused"] == 2)
    status = await goes_on(stack)
    assert session(status)["reconnects"] == {"frame_too_large": 1}
    assert status["memory"]["rss_mb"] < 1_500
    await stack.stop_exchange()
    assert await stack.stop_worker() == 0
    letters = dead_letters(stack.directory / "data")
    assert [letter["reason"] for letter in letters] == ["frame_too_large"] * 2
    assert re.fullmatch(r"frame of 100000\d\d bytes; the limit is 500000", letters[0]["detail"])
    assert len(letters[0]["value"]) == 65_536


async def test_ids_beyond_all_reason_make_gaps_and_no_error(stack: Stack) -> None:
    for symbol in ("BTCUSDT", "ETHUSDT", "SOLUSDT"):
        for ident in (1, 2**63 - 2):
            stream = f"{symbol.lower()}@trade"
            await stack.fault("raw", hex=trade(s=symbol, t=ident, stream=stream).hex())
    await stack.until("gaps", lambda s: s["validate"]["gaps_opened"] >= 3)
    status = await goes_on(stack)
    assert status["validate"]["missing_ids"] >= 2**63 - 1
    await stack.until("gaps are stored", lambda s: s["lake"]["gaps"] >= 3)
    gaps = await stack.sql("select symbol, max(size) as size from gaps group by 1 order by 1")
    assert [gap["symbol"] for gap in gaps] == ["BTCUSDT", "ETHUSDT", "SOLUSDT"]
    assert await stack.stop_worker() == 0


async def test_duplicates_and_disconnections_store_every_trade_once(stack: Stack) -> None:
    await stack.fault("duplicate", n=50)
    await stack.until(
        "duplicates are dropped", lambda s: s["validate"]["duplicates"] >= 40, timeout_s=30
    )
    for abort in (False, True):
        before = session(await stack.client.status())["reconnects"]
        await stack.fault("disconnect", abort=abort)
        await stack.until(
            "it reconnects",
            lambda s, before=before: (
                session(s)["reconnects"] != before and session(s)["state"] == "connected"
            ),
        )
        await goes_on(stack)
    await stack.stop_exchange()
    assert await stack.stop_worker() == 0
    ids = trade_ids(stack.directory / "data")
    assert len(ids) == len(set(ids))
    missing = set(range(FIRST_ID, ids[-1] + 1)) - set(ids)
    ranges = gap_ranges(stack.directory / "data")
    assert missing == {i for first, last in ranges for i in range(first, last + 1)}


#: Path, parameters, and the parameter the answer must name.
BAD_REQUESTS: list[tuple[str, dict[str, str], str]] = [
    ("/v1/trades", {"limit": "0"}, "limit"),
    ("/v1/trades", {"limit": "-1"}, "limit"),
    ("/v1/trades", {"limit": "abc"}, "limit"),
    ("/v1/trades", {"limit": "1e3"}, "limit"),
    ("/v1/trades", {"limit": "10001"}, "limit"),
    ("/v1/trades", {"limit": "9" * 30}, "limit"),
    ("/v1/trades", {"symbol": "'; drop table trades; --"}, "symbol"),
    ("/v1/trades", {"symbol": ""}, "symbol"),
    ("/v1/trades", {"symbol": "B" * 33}, "symbol"),
    ("/v1/trades", {"exchange": "../../etc/passwd"}, "exchange"),
    ("/v1/trades", {"start_time": "yesterday"}, "start_time"),
    ("/v1/trades", {"end_time": "2024-13-45"}, "end_time"),
    ("/v1/trades", {"start_time": "9" * 18}, "start_time"),
    ("/v1/trades", {"start_time": "2", "end_time": "1"}, "start_time"),
    ("/v1/trades", {"fields": "foo"}, "fields"),
    ("/v1/trades", {"fields": "price,"}, "fields"),
    ("/v1/trades", {"price": "1"}, "price"),
    ("/v1/quotes", {"limit": "0"}, "limit"),
    ("/v1/quotes", {"fields": "price"}, "fields"),
    ("/v1/symbols", {"symbol": "BTCUSDT"}, "symbol"),
    ("/v1/symbols", {"exchange": "a b"}, "exchange"),
    ("/v1/status", {"verbose": "1"}, "verbose"),
    ("/v1/sql", {}, "sql"),
    ("/v1/sql", {"sql": " "}, "sql"),
    ("/v1/sql", {"sql": "select 1", "limit": "0"}, "limit"),
    ("/v1/sql", {"sql": "select 1", "timeout": "1"}, "timeout"),
    ("/v1/sql", {"sql": "selec 1"}, "sql"),
    ("/v1/sql", {"sql": "select nothing from trades"}, "sql"),
    ("/v1/sql", {"sql": "select 1; select 2"}, "sql"),
    ("/v1/sql", {"sql": "drop table trades"}, "sql"),
    ("/v1/sql", {"sql": "delete from trades"}, "sql"),
    ("/v1/sql", {"sql": "copy trades to '/tmp/x.csv'"}, "sql"),
    ("/v1/sql", {"sql": "attach '/tmp/x.db'"}, "sql"),
    ("/v1/sql", {"sql": "set memory_limit = '100GB'"}, "sql"),
    ("/v1/sql", {"sql": "select * from read_csv('/etc/passwd')"}, "sql"),
    ("/v1/sql", {"sql": "select * from read_text('/etc/passwd')"}, "sql"),
    ("/v1/sql", {"sql": "select * from '/etc/passwd'"}, "sql"),
    ("/v1/sql", {"sql": "select * from glob('/etc/*')"}, "sql"),
    ("/v1/sql", {"sql": "select getenv('HOME')"}, "sql"),
]


async def test_wrong_requests_get_an_answer_that_names_the_parameter(stack: Stack) -> None:
    wrong = {}
    for path, params, name in BAD_REQUESTS:
        status, body = await stack.get(path, **params)
        detail = body.get("detail", {})
        named = detail.get("parameter") == name or (name == "sql" and detail.get("message"))
        if not (400 <= status < 500 and body["success"] is False and named):
            wrong[path, str(params)] = (status, body)
    assert wrong == {}
    bodies: list[Any] = [b"{not json", b"[]", b'"x"', b'{"sql": 1}', b'{"sql": "select 1", "x": 1}']
    for raw in bodies:
        status, body = await stack.request("POST", "/v1/sql", data=raw)
        assert (status in (400, 422), body["success"]) == (True, False), (raw, body)
    assert (await stack.request("POST", "/v1/sql", data=io.BytesIO(b"x" * 11_000_000)))[0] == 413
    assert (await stack.request("GET", "/v1/nothing"))[0] == 404
    assert (await stack.request("DELETE", "/v1/trades"))[0] == 405
    assert (await stack.request("GET", "/v1/trades", headers={}))[0] == 401
    assert (await stack.request("GET", "/v1/trades", headers={"X-API-Key": "wrong"}))[0] == 403
    key = {"X-API-Key": LOCAL_API_KEY}
    assert (await stack.request("GET", "/v1/trades", headers=key))[0] == 200
    await goes_on(stack)


def _errors(reason: str) -> str:
    return f'k2_feed_message_errors_total{{error_type="{reason}",exchange="binance"}}'
