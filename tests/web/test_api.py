"""The HTTP interface on a real lake and tail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
import structlog
from aiohttp import web

from k2.clock import SYSTEM_CLOCK
from k2.errors import QueryTimeout
from k2.query.answers import Answer
from k2.web import formats
from k2.web.context import Check
from k2.web.resources import candles, records
from tests.query.rows import T0_US
from tests.web.api import KEY, Api


async def test_trades(api: Api) -> None:
    status, body = await api.get("/v1/trades", limit=6)
    assert status == 200
    assert body["success"] is True
    pages = body["pagination"]
    assert (pages["limit"], pages["total"], pages["has_more"]) == (6, None, True)
    assert pages["next_cursor"]
    assert [row["platform_sequence"] for row in body["data"]] == [14, 13, 12, 11, 10, 9]
    first, last = body["data"][0], body["data"][-1]
    assert first["price"] == "3.5"
    assert first["timestamp"] == "2024-08-08T23:58:34.000000Z"
    assert first["vendor_data"] is None
    assert last["vendor_data"] == {"m": "1"}
    assert body["meta"]["partial"] is False
    assert body["meta"]["as_of"]["trades"]["hot_rows"] == 5


async def test_filters_and_fields(api: Api) -> None:
    _, body = await api.get(
        "/v1/trades",
        symbol="btcusdt",
        exchange="binance",
        start_time="2024-08-08T23:58:22Z",
        end_time=str((T0_US + 4_000_000) // 1_000),
        fields="symbol,price",
    )
    assert body["data"] == [
        {"symbol": "BTCUSDT", "price": "0.75"},
        {"symbol": "BTCUSDT", "price": "0.5"},
    ]
    assert body["pagination"]["has_more"] is False


@pytest.mark.parametrize(
    "when",
    ["2024-08-08T23:58:29", "2024-08-08T23:58:29Z", "2024-08-09T01:58:29+02:00",
     "2024-08-09T01:58:29 02:00", "1723161509000", "1723161509000000"],
)  # fmt: skip
async def test_times_in_every_form(api: Api, when: str) -> None:
    _, body = await api.get("/v1/trades", symbol="BTCUSDT", start_time=when)
    assert [row["platform_sequence"] for row in body["data"]] == [9]


async def test_quotes(api: Api) -> None:
    _, body = await api.get("/v1/quotes")
    (row,) = body["data"]
    assert (row["bid_price"], row["quote_conditions"]) == ("0", ["LOCKED"])


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "10001"}, "limit"),
        ({"limit": "ten"}, "limit"),
        ({"limit": "1.5"}, "limit"),
        ({"start_time": "yesterday"}, "start_time"),
        ({"end_time": "2024-13-01"}, "end_time"),
        ({"end_time": "9" * 18}, "end_time"),
        ({"start_time": "2024-01-02", "end_time": "2024-01-01"}, "start_time"),
        ({"symbol": "BTC'; DROP TABLE trades"}, "symbol"),
        ({"symbol": "\u212a"}, "symbol"),
        ({"symbol": ""}, "symbol"),
        ({"exchange": "x" * 33}, "exchange"),
        ({"fields": "price,nope"}, "fields"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_wrong_parameters_are_named(api: Api, params: dict[str, str], name: str) -> None:
    status, body = await api.get("/v1/trades", **params)
    assert status == 422
    assert body["success"] is False
    assert body["detail"]["error"] == "invalid_parameter"
    assert body["detail"]["parameter"] == name
    assert body["detail"]["allowed"]


async def test_a_parameter_given_twice(api: Api) -> None:
    async with api.client.get("/v1/trades?limit=1&limit=2", headers=KEY) as response:
        assert response.status == 422


async def test_symbols(api: Api) -> None:
    _, body = await api.get("/v1/symbols")
    assert body["data"] == ["BTCUSDT", "ETHUSDT"]
    _, body = await api.get("/v1/symbols", exchange="KRAKEN")
    assert body["data"] == []


async def test_sql(api: Api) -> None:
    text = "SELECT symbol, count(*) AS n, sum(quantity) AS q FROM trades GROUP BY ALL ORDER BY ALL"
    want = [{"symbol": "BTCUSDT", "n": 10, "q": "5"}, {"symbol": "ETHUSDT", "n": 5, "q": "2.5"}]
    status, body = await api.post({"sql": text})
    assert (status, body["data"]) == (200, want)
    assert body["meta"]["truncated"] is False
    assert body["pagination"]["total"] == 2
    assert body["meta"]["columns"][2] == {"name": "q", "type": "decimal128(38, 10)"}
    status, body = await api.get("/v1/sql", sql=text, limit=1)
    assert (status, body["data"], body["meta"]["truncated"]) == (200, want[:1], True)


@pytest.mark.parametrize(
    ("body", "status", "name"),
    [
        ({"sql": "DROP TABLE trades"}, 400, "sql"),
        ({"sql": "SELECT * FROM read_text('/etc/passwd')"}, 400, "sql"),
        ({"sql": "SELECT nope FROM trades"}, 400, "sql"),
        ({"sql": 7}, 400, "sql"),
        ({}, 400, "sql"),
        ([], 400, "body"),
        ({"sql": "SELECT 1", "limit": 501}, 422, "limit"),
        ({"sql": "SELECT 1", "limit": True}, 422, "limit"),
        ({"sql": "SELECT 1", "x": 1}, 422, "x"),
    ],
)
async def test_sql_refused(api: Api, body: Any, status: int, name: str) -> None:
    got, answer = await api.post(body)
    assert (got, answer["detail"]["parameter"]) == (status, name)


async def test_a_body_that_is_not_json(api: Api) -> None:
    async with api.client.post("/v1/sql", data=b"{", headers=KEY) as response:
        assert response.status == 400
        assert (await response.json())["detail"]["parameter"] == "body"


async def test_a_large_body_is_refused_also_in_chunks(api: Api) -> None:
    status, body = await api.post({"sql": "x" * 20_000})
    assert (status, body["detail"]["error"]) == (413, "body_too_large")

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 1_000

    async with api.client.post("/v1/sql", data=chunks(), headers=KEY) as response:
        assert response.status == 413


@pytest.mark.parametrize("path", ["/v1/trades", "/v1/sql", "/v1/status", "/faust/", "/v1/nowhere"])
async def test_the_key(api: Api, path: str) -> None:
    async with api.client.get(path) as response:
        assert response.status == 401
        assert (await response.json())["detail"]["error"] == "missing_api_key"
    for wrong in ("wrong", "rightx", "", "r\u00e9"):
        async with api.client.get(path, headers={"X-API-Key": wrong}) as response:
            assert response.status == 403


@pytest.mark.parametrize("path", ["/", "/health", "/health/live", "/health/ready", "/metrics"])
async def test_open_without_a_key(api: Api, path: str) -> None:
    async with api.client.get(path) as response:
        assert response.status == 200


async def test_nothing_there_and_wrong_method(api: Api) -> None:
    status, body = await api.get("/v1/nowhere")
    assert (status, body["detail"]["error"], body["success"]) == (404, "not_found", False)
    async with api.client.delete("/v1/trades", headers=KEY) as response:
        assert response.status == 405
        assert "GET" in response.headers["Allow"]
        assert (await response.json())["detail"]["error"] == "method_not_allowed"


async def test_correlation_id(api: Api) -> None:
    async with api.client.get("/v1/trades", headers={**KEY, "X-Correlation-ID": "abc-1"}) as got:
        assert got.headers["X-Correlation-ID"] == "abc-1"
        assert (await got.json())["meta"]["correlation_id"] == "abc-1"
    async with api.client.get("/", headers={"X-Correlation-ID": "a b\u00e9{"}) as got:
        assert len(got.headers["X-Correlation-ID"]) == 16


async def test_headers(api: Api) -> None:
    async with api.client.get("/v1/trades", headers=KEY) as response:
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cache-Control"] == "private, no-cache"
        assert response.headers["Server"] == "K2"
    params = {"end_time": "2024-08-09"}
    async with api.client.get("/v1/trades", params=params, headers=KEY) as response:
        assert response.headers["Cache-Control"] == "private, max-age=5"


async def test_health_tells_live_from_ready(api: Api) -> None:
    api.checks = [Check("lake", "healthy"), Check("log", "degraded", "slow", 12.5)]
    status, body = await api.get("/health")
    assert (status, body["data"]["status"], body["data"]["ready"]) == (200, "degraded", True)
    api.checks = [Check("lake", "unhealthy", "no answer")]
    for path in ("/health", "/health/ready"):
        status, body = await api.get(path)
        assert (status, body["success"], body["data"]["live"]) == (503, False, True)
        assert body["data"]["dependencies"][0]["message"] == "no answer"
    status, _ = await api.get("/health/live")
    assert status == 200


async def test_the_breaker_stops_data_but_not_status(api: Api) -> None:
    api.level = 4
    for path in ("/v1/trades", "/v1/quotes", "/v1/symbols", "/v1/sql"):
        async with api.client.get(path, headers=KEY) as response:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) > 0
            assert (await response.json())["detail"]["error"] == "overloaded"
    status, body = await api.get("/v1/status")
    assert (status, body["data"]["level"]) == (200, 4)
    assert (await api.get("/health"))[0] == 200


async def test_status(api: Api) -> None:
    _, body = await api.get("/v1/status")
    found = body["data"]
    assert found["roles"] == ["query"]
    assert found["query"]["tables"]["trades"]["cold_rows"] == 10
    assert found["query"]["tables"]["trades"]["hot_rows"] == 5
    assert found["query"]["pool"]["running"] == 0


async def test_metrics_are_prometheus_text(api: Api) -> None:
    async with api.client.get("/metrics") as response:
        assert response.content_type == "text/plain"
        assert "python_info" in await response.text()


async def test_a_full_queue_is_429(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = api.platform.make_engine(pool_size=1, queue_size=0)
    go, begun = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def hold(cursor: object) -> None:
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result()

    held = asyncio.create_task(engine._pool.run(hold))
    await begun.wait()
    monkeypatch.setattr(api.platform.engine, "_pool", engine._pool)
    async with api.client.get("/v1/trades", headers=KEY) as response:
        assert (response.status, response.headers["Retry-After"]) == (429, "1")
    go.set()
    await held
    engine.close()


async def test_a_query_past_its_deadline_is_504(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = api.platform.make_engine(timeout_s=0.2)
    monkeypatch.setattr(api.platform.engine, "_pool", engine._pool)
    endless = "SELECT count(*) FROM range(100000000) a, range(1000000) b WHERE a.range < b.range"
    status, body = await api.post({"sql": endless})
    assert (status, body["detail"]["error"]) == (504, "query_timeout")
    engine.close()


async def test_an_internal_error_shows_nothing_but_its_id(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret path /var/k2")

    monkeypatch.setattr(api.platform.engine, "records", broken)
    with structlog.testing.capture_logs() as logs:
        status, body = await api.get("/v1/trades")
    assert status == 500
    assert "secret" not in str(body)
    assert body["detail"]["error"] == "internal"
    assert [entry["event"] for entry in logs] == ["http_request_failed", "http_request"]
    assert logs[1]["status"] == 500


async def test_every_request_is_logged_and_observed(api: Api) -> None:
    with structlog.testing.capture_logs(
        processors=[structlog.contextvars.merge_contextvars]
    ) as logs:
        await api.get("/v1/trades", limit=3)
    (entry,) = [entry for entry in logs if entry["event"] == "http_request"]
    assert (entry["method"], entry["path"], entry["status"], entry["rows"]) == (
        "GET", "/v1/trades", 200, 3,
    )  # fmt: skip
    assert entry["correlation_id"]
    assert api.done[-1].route == "/v1/trades"
    await api.get("/v1/no/such/path")
    assert api.done[-1].route == "(none)"


async def test_large_answers_are_encoded_off_the_loop(api: Api) -> None:
    status, body = await api.post({"sql": "SELECT range AS i FROM range(400)", "limit": 300})
    assert (status, len(body["data"]), body["meta"]["truncated"]) == (200, 300, True)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/trades", {"order": "asc", "limit": 3, "fields": "price,symbol,vendor_data"}),
        ("/v1/trades", {"symbol": "BTCUSDT", "limit": 200}),
        ("/v1/ohlcv/1m", {"symbol": "BTCUSDT", "limit": 2}),
    ],
)
async def test_json_is_the_same_wherever_it_is_made(
    api: Api, monkeypatch: pytest.MonkeyPatch, path: str, asked: dict[str, Any]
) -> None:
    """Large answers become JSON in the thread that found them, small ones on the loop."""
    # The past is neither in memory nor among the answers that are kept.
    asked = {**asked, "as_of": SYSTEM_CLOCK.now_us() // 1_000}
    made: list[bytes | None] = []
    plain = formats.rows_response

    async def noted(request: web.Request, found: Answer, **more: Any) -> web.StreamResponse:
        made.append(found.json)
        return await plain(request, found, **more)

    for module in (records, candles):
        monkeypatch.setattr(module, "rows_response", noted)
    _, small = await api.get(path, **asked)
    monkeypatch.setattr(formats, "INLINE_CELLS", 0)
    _, large = await api.get(path, **asked)
    assert made[0] is None
    assert made[1] == orjson.dumps(large["data"])
    for same in ("success", "data", "pagination"):
        assert small[same] == large[same]
    assert large["data"]
    # Whoever may have the answer already gets it made only when that is not so.
    asked_again = {**KEY, "If-None-Match": '"another"'}
    async with api.client.get(path, params=asked, headers=asked_again) as response:
        assert (await response.json())["data"] == large["data"]
    assert made[2] is None


#: Values Python or JSON cannot hold, as DuckDB means them.
ODD = {
    "SELECT date '99999-01-01' AS v": "99999-01-01",
    "SELECT date 'infinity' AS v": "infinity",
    "SELECT timestamptz '-infinity' AS v": "-infinity",
    "SELECT timestamp '20000-01-01' AS v": "20000-01-01T00:00:00.000000",
    "SELECT [date '99999-01-01', NULL] AS v": ["99999-01-01", None],
    "SELECT {'a': date 'infinity'} AS v": {"a": "infinity"},
    "SELECT map(['k'], [interval 1 day]) AS v": [["k", "P1D"]],
    "SELECT interval 90 second AS v": "PT1M30S",
    "SELECT -(interval '1 year 2 days 1.5 seconds') AS v": "P-1Y-2DT-1.5S",
    "SELECT interval 0 day AS v": "PT0S",
    "SELECT 1e308 * 10 AS v": None,
}


@pytest.mark.parametrize("text", ODD)
async def test_values_beyond_python(api: Api, text: str) -> None:
    status, body = await api.post({"sql": text})
    assert (status, body.get("data")) == (200, [{"v": ODD[text]}])


async def test_a_number_beyond_json_is_refused(api: Api) -> None:
    status, body = await api.post({"sql": "SELECT * FROM trades WHERE price > 1e400"})
    assert (status, body["detail"]["allowed"]) == (400, "numbers up to 1.7e308")


@pytest.mark.parametrize("name", ["trades", "market_data.quotes", "gaps", "market_data"])
async def test_describe_lists_the_columns_of_a_view(api: Api, name: str) -> None:
    status, body = await api.post({"sql": f"DESCRIBE {name}"})
    assert status == 200
    assert "symbol" in {row["column_name"] for row in body["data"]}


@pytest.mark.parametrize("text", ["SHOW TABLES", "SUMMARIZE trades", "DESCRIBE pg_tables"])
async def test_other_descriptions_are_refused(api: Api, text: str) -> None:
    status, body = await api.post({"sql": text})
    assert (status, body["detail"]["parameter"]) == (400, "sql")
    assert "trades" in body["detail"]["allowed"]


async def test_a_refused_function_says_where_the_allowed_ones_are(api: Api) -> None:
    _, body = await api.post({"sql": "SELECT averag(price) FROM trades"})
    assert "docs/sql-functions.md" in body["detail"]["allowed"]


async def test_refused_values_are_data_not_python(api: Api) -> None:
    _, body = await api.get("/v1/trades", symbol="B'TC")
    assert body["detail"]["value"] == "B'TC"
    _, body = await api.post({"sql": "SELECT 1", "limit": True})
    assert body["detail"]["value"] is True


@pytest.mark.parametrize("when", ["1723161509", "-5", "99999999999"])
async def test_seconds_are_not_read_as_milliseconds(api: Api, when: str) -> None:
    status, body = await api.get("/v1/trades", start_time=when)
    assert (status, body["detail"]["parameter"]) == (422, "start_time")
    assert "seconds" in body["detail"]["allowed"]


async def test_a_timeout_is_no_error_in_the_log(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(*_: object, **__: object) -> None:
        raise QueryTimeout("too long")

    monkeypatch.setattr(api.platform.engine, "sql", slow)
    with structlog.testing.capture_logs() as logs:
        status, _ = await api.post({"sql": "SELECT 1"})
    assert status == 504
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("http_request_refused", "warning"),
        ("http_request", "info"),
    ]


async def test_the_empty_snapshot_is_not_pinned_once_there_is_one(api: Api) -> None:
    _, body = await api.get("/v1/status")
    trades = body["data"]["query"]["tables"]["trades"]
    assert trades["snapshot_id"] is not None
    assert trades["newest"]["cold_rows"] == 10
