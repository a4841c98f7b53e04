"""Every resource against what a plain list of rows says."""

from __future__ import annotations

import csv
import io
import itertools
import random
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from k2.lake.tables import QUOTES, TRADES
from k2.web import formats
from tests.query.rows import T0_US, place, rows
from tests.web.api import KEY, Api

MINUTE_US = 60_000_000
#: A whole minute, so that windows are easy to see.
M0_US = T0_US - T0_US % MINUTE_US


async def fill(api: Api, count: int = 60) -> list[dict[str, Any]]:
    """Trades of two symbols at odd times, two thirds of them cold; all rows as a plain list."""
    chance = random.Random(11)
    times = sorted(chance.sample(range(10 * MINUTE_US), count))
    names = [chance.choice(("AAAUSDT", "BBBUSDT")) for _ in times]
    prices = [Decimal(chance.randrange(100_000, 200_000)) / 1000 for _ in times]
    sizes = [Decimal(chance.randrange(1, 10_000)) / 10_000 for _ in times]
    table = rows(
        range(count), [M0_US + t for t in times], symbols=names, prices=prices, quantities=sizes,
        partition=3,
    )  # fmt: skip
    cut = count * 2 // 3
    api.platform.commit(table.slice(0, cut), place(3))
    api.platform.refresh()
    api.platform.tails["trades"].start(place(3), cut - 1)
    api.platform.produce(table.slice(cut), place(3))
    return [
        {"us": M0_US + t, "symbol": s, "price": p, "quantity": q, "sequence": i}
        for i, (t, s, p, q) in enumerate(zip(times, names, prices, sizes, strict=True))
    ]


def buckets(found: list[dict], symbol: str, width_us: int = MINUTE_US) -> dict[int, list[dict]]:
    out: dict[int, list[dict]] = {}
    for row in found:
        if row["symbol"] == symbol:
            out.setdefault(row["us"] - row["us"] % width_us, []).append(row)
    return out


def rounded(value: Decimal) -> Decimal:
    return value.quantize(Decimal("0.00000001"), ROUND_HALF_UP)


async def test_candles_are_exact(api: Api) -> None:
    plain = await fill(api)
    status, body = await api.get("/v1/ohlcv/1m", symbol="aaausdt", limit=100)
    assert status == 200
    want = buckets(plain, "AAAUSDT")
    assert len(body["data"]) == len(want)
    for row, (_, trades) in zip(body["data"], sorted(want.items(), reverse=True), strict=True):
        prices = [trade["price"] for trade in trades]
        volume = sum(trade["quantity"] for trade in trades)
        notional = sum(trade["price"] * trade["quantity"] for trade in trades)
        got = {name: Decimal(row[name]) for name in ("open", "high", "low", "close", "volume")}
        assert got == {
            "open": prices[0],
            "high": max(prices),
            "low": min(prices),
            "close": prices[-1],
            "volume": volume,
        }
        assert Decimal(row["vwap"]) == rounded(notional / volume)
        assert row["trade_count"] == len(trades)
    _, newest = await api.get("/v1/ohlcv/1m", symbol="AAAUSDT", limit=2)
    assert newest["data"] == body["data"][:2]
    assert newest["pagination"]["has_more"] is True
    assert body["pagination"]["has_more"] is False


async def test_candles_of_nothing_are_404(api: Api) -> None:
    assert (await api.get("/v1/ohlcv/1m", symbol="NOPE"))[0] == 404
    assert (await api.get("/v1/ohlcv/2m", symbol="BTCUSDT"))[0] == 422


async def test_a_batch_of_candles_has_an_outcome_each(api: Api) -> None:
    await fill(api)
    asked = [{"timeframe": "5m", "symbol": "AAAUSDT"}, {"timeframe": "1h", "symbol": "BBBUSDT"}]
    status, body = await api.post({"requests": asked}, "/v1/ohlcv/batch")
    assert status == 200
    assert set(body["data"]) == {"5m_AAAUSDT", "1h_BBBUSDT"}
    _, single = await api.get("/v1/ohlcv/5m", symbol="AAAUSDT")
    assert body["data"]["5m_AAAUSDT"]["data"] == single["data"]
    many = [{"timeframe": "1m", "symbol": "A", "limit": 10_000}] * 3
    assert (await api.post({"requests": many}, "/v1/ohlcv/batch"))[0] == 422


async def test_candle_health(api: Api) -> None:
    status, body = await api.get("/v1/ohlcv/health")
    assert (status, body["data"]["overall"]) == (200, "stale")
    assert set(body["data"]["timeframes"]) == {"1m", "5m", "15m", "30m", "1h", "1d"}
    _, body = await api.get("/v1/ohlcv/health", symbol="NOPE")
    assert body["data"]["overall"] == "no_data"


async def test_summary_keeps_fractions_of_volume(api: Api) -> None:
    plain = [row for row in await fill(api) if row["symbol"] == "AAAUSDT"]
    status, body = await api.get("/v1/summary/AAAUSDT/2024-08-08")
    assert status == 200
    day = [row for row in plain if row["us"] < 1_723_161_600_000_000]
    assert Decimal(body["data"]["volume"]) == sum(row["quantity"] for row in day)
    assert body["data"]["trade_count"] == len(day)
    assert (await api.get("/v1/summary/AAAUSDT/2020-01-01"))[0] == 404
    assert (await api.get("/v1/summary/AAAUSDT/2024-02-30"))[0] == 422


def twap(trades: list[dict], start: int, end: int, before: dict | None) -> Decimal:
    """The integral of the price in force over its time."""
    points = [(row["us"], row["price"]) for row in trades]
    if before is not None:
        points.insert(0, (start, before["price"]))
    points.append((end, Decimal(0)))
    area = sum(p * (t1 - t0) for (t0, p), (t1, _) in itertools.pairwise(points))
    return rounded(Decimal(area) / (end - points[0][0]))


async def test_aggregations_equal_plain_arithmetic(api: Api) -> None:
    plain = await fill(api)
    end = M0_US + 9 * MINUTE_US + 31_000_000
    asked = {
        "symbols": ["AAAUSDT", "BBBUSDT"],
        "metrics": ["vwap", "twap", "ohlcv", "volume_profile", "trade_count"],
        "interval": "1min",
        "start_time": M0_US,
        "end_time": end,
        "levels": 4,
    }
    status, body = await api.post(asked, "/v1/aggregations")
    assert status == 200
    inside = [row for row in plain if row["us"] < end]
    found = iter(body["data"])
    for symbol in ("AAAUSDT", "BBBUSDT"):
        before = None
        for start, trades in sorted(buckets(inside, symbol).items()):
            row = next(found)
            assert row["symbol"] == symbol
            stop = min(start + MINUTE_US, end)
            assert Decimal(row["twap"]) == twap(trades, start, stop, before), row
            assert row["trade_count"] == len(trades)
            levels = row["volume_profile"]
            assert sum(Decimal(one["volume"]) for one in levels) == Decimal(row["volume"])
            assert sum(one["trade_count"] for one in levels) == len(trades)
            assert Decimal(levels[0]["price_low"]) == Decimal(row["low"])
            assert Decimal(levels[-1]["price_high"]) == Decimal(row["high"])
            before = trades[-1]
    assert next(found, None) is None
    _, few = await api.post({**asked, "metrics": ["trade_count"]}, "/v1/aggregations")
    assert set(few["data"][0]) == {
        "symbol", "exchange", "interval_start", "interval_end", "trade_count",
    }  # fmt: skip


async def test_latest_is_the_last_of_each_symbol(api: Api) -> None:
    plain = await fill(api)
    status, body = await api.get("/v1/latest", symbols="AAAUSDT,BBBUSDT,BTCUSDT")
    assert status == 200
    found = {row["symbol"]: row for row in body["data"]}
    for symbol in ("AAAUSDT", "BBBUSDT"):
        last = [row for row in plain if row["symbol"] == symbol][-1]
        assert found[symbol]["trade"]["platform_sequence"] == last["sequence"]
        assert found[symbol]["quote"] is None
    assert found["BTCUSDT"]["quote"]["symbol"] == "BTCUSDT"
    _, only = await api.get("/v1/latest", data_type="trades")
    assert {row["symbol"] for row in only["data"]} == {
        "AAAUSDT", "BBBUSDT", "BTCUSDT", "ETHUSDT",
    }  # fmt: skip


async def test_latest_is_the_same_from_memory_and_from_the_pool(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(api)
    for kind in ("both", "trades", "quotes"):
        asked = {"symbols": "AAAUSDT,BBBUSDT,BTCUSDT,NOPE", "data_type": kind}
        _, quick = await api.get("/v1/latest", **asked)
        with monkeypatch.context() as slow:
            slow.setattr(api.platform.engine, "hot_latest", lambda *_: None)
            _, thorough = await api.get("/v1/latest", **asked)
        assert quick["data"] == thorough["data"] != []
        assert [list(row) for row in quick["data"]] == [list(row) for row in thorough["data"]]
        assert quick["meta"]["as_of"] == thorough["meta"]["as_of"]


async def test_asof_gives_the_quote_in_force(api: Api) -> None:
    plain = [row for row in await fill(api) if row["symbol"] == "AAAUSDT"]
    chance = random.Random(2)
    times = sorted(chance.choices([row["us"] for row in plain], k=15))
    times = [t - chance.choice((0, 0, 1, 20_000_000)) for t in times]
    made = rows(range(15), times, symbols="AAAUSDT", table=QUOTES, partition=3)
    api.platform.commit(made.slice(0, 8), place(3, kind="quotes"), kind="quotes")
    api.platform.refresh()
    api.platform.tails["quotes"].start(place(3, kind="quotes"), 7)
    api.platform.produce(made.slice(8), place(3, kind="quotes"), kind="quotes")
    quotes = sorted(zip(times, range(15), strict=True))
    status, body = await api.get("/v1/asof", symbol="AAAUSDT", limit=100, max_age_s=60)
    assert status == 200
    assert [row["platform_sequence"] for row in body["data"]] == [
        row["sequence"] for row in reversed(plain)
    ]
    for row, trade in zip(body["data"], reversed(plain), strict=True):
        past = [(t, i) for t, i in quotes if trade["us"] - 60_000_000 <= t <= trade["us"]]
        want = str(1_000_000 + past[-1][1]) if past else None
        assert row["quote_id"] == want
        assert (row["bid_price"] is None) is (want is None)


async def test_queries_over_several_symbols(api: Api) -> None:
    plain = await fill(api)
    asked = {
        "symbols": ["AAAUSDT", "BBBUSDT"], "min_price": "120", "max_price": "180.5",
        "min_quantity": "0.2", "order": "asc", "limit": 5, "fields": ["platform_sequence"],
    }  # fmt: skip
    want = [
        row["sequence"]
        for row in plain
        if Decimal(120) <= row["price"] <= Decimal("180.5") and row["quantity"] >= Decimal("0.2")
    ]
    seen: list[int] = []
    cursor: dict[str, str] = {}
    while True:
        status, body = await api.post({**asked, **cursor}, "/v1/trades/query")
        assert status == 200
        seen += [row["platform_sequence"] for row in body["data"]]
        if not body["pagination"]["has_more"]:
            break
        cursor = {"cursor": body["pagination"]["next_cursor"]}
    assert seen == want
    _, paged = await api.post({**asked, "offset": 5}, "/v1/trades/query")
    assert [row["platform_sequence"] for row in paged["data"]] == want[5:10]
    status, body = await api.post({**asked, **cursor, "min_price": "1"}, "/v1/trades/query")
    assert (status, body["detail"]["parameter"]) == (422, "cursor")
    status, body = await api.post({"min_price": 1.5}, "/v1/trades/query")
    assert (status, body["detail"]["parameter"]) == (422, "min_price")
    status, body = await api.post({"symbols": ["x'; drop table"]}, "/v1/trades/query")
    assert (status, body["detail"]["parameter"]) == (422, "symbols")


async def test_quotes_query(api: Api) -> None:
    status, body = await api.post({"symbols": "BTCUSDT"}, "/v1/quotes/query")
    assert (status, len(body["data"])) == (200, 1)
    status, body = await api.post({"min_price": "1"}, "/v1/quotes/query")
    assert (status, body["detail"]["parameter"]) == (422, "min_price")


async def test_recent_trades(api: Api) -> None:
    status, body = await api.get("/v1/trades/recent", symbol="btcusdt", exchange="binance")
    assert (status, body["data"]) == (200, [])
    assert body["meta"]["query"]["window_minutes"] == 15
    assert (await api.get("/v1/trades/recent", symbol="BTCUSDT"))[0] == 422


async def test_snapshots_and_travel(api: Api) -> None:
    await fill(api)
    status, body = await api.get("/v1/snapshots", table="trades")
    assert (status, [row["total_records"] for row in body["data"]]) == (200, [50, 10])
    newest, oldest = body["data"]
    _, then = await api.get("/v1/trades", snapshot_id=oldest["snapshot_id"], limit=1000)
    assert len(then["data"]) == 10
    assert then["meta"]["as_of"]["trades"]["snapshot_id"] == oldest["snapshot_id"]
    _, at = await api.get("/v1/trades", as_of=newest["timestamp"], limit=1000)
    assert len(at["data"]) == 50
    path = f"/v1/snapshots/{oldest['snapshot_id']}/query"
    status, body = await api.post({"symbol": "BTCUSDT", "limit": 4, "offset": 3}, path)
    assert [row["platform_sequence"] for row in body["data"]] == [6, 5, 4, 3]
    _, sql = await api.get(
        "/v1/sql", sql="SELECT count(*) n FROM trades", as_of=newest["timestamp"]
    )
    assert sql["data"] == [{"n": 50}]
    for path, params in (
        ("/v1/trades", {"snapshot_id": "12345"}),
        ("/v1/trades", {"as_of": "2001-01-01"}),
    ):
        status, body = await api.get(path, **params)
        assert (status, body["detail"]["error"]) == (404, "snapshot_not_found")
    assert (await api.post({}, "/v1/snapshots/77/query"))[0] == 404
    both = {"snapshot_id": newest["snapshot_id"], "as_of": newest["timestamp"]}
    assert (await api.get("/v1/trades", **both))[0] == 422


async def test_a_replay_holds_on_to_its_snapshot(api: Api) -> None:
    plain = await fill(api, 900)
    cold = [row["sequence"] for row in plain[:600]]
    asked = {"symbols": ["AAAUSDT", "BBBUSDT"], "start_time": M0_US,
             "end_time": M0_US + 10 * MINUTE_US, "batch_size": 250}  # fmt: skip
    seen: list[int] = []
    bodies = []
    cursor: dict[str, str] = {}
    while True:
        status, body = await api.post({**asked, **cursor}, "/v1/replay")
        assert status == 200
        bodies.append(body)
        seen += [row["platform_sequence"] for row in body["data"]]
        if body["pagination"]["next_cursor"] is None:
            break
        cursor = {"cursor": body["pagination"]["next_cursor"]}
        first = 10_000 * len(bodies)
        late = rows(range(first, first + 5), [M0_US + 1] * 5, symbols="AAAUSDT", partition=4)
        api.platform.commit(late, place(4))
        api.platform.refresh()
    assert seen == cold
    assert [body["meta"]["batch_info"]["batch_size"] for body in bodies] == [250, 250, 100]
    assert bodies[-1]["meta"]["batch_info"]["progress_percent"] == 100
    assert bodies[0]["meta"]["batch_info"]["total_records"] == 600
    _, again = await api.post(
        {**asked, "snapshot_id": bodies[0]["meta"]["snapshot_id"]}, "/v1/replay"
    )
    assert again["data"] == bodies[0]["data"]
    for wrong in ("!!", "e30", cursor["cursor"][:-3]):
        status, body = await api.post({**asked, "cursor": wrong}, "/v1/replay")
        assert (status, body["detail"]["parameter"]) == (422, "cursor")


async def test_formats_carry_the_same_rows(api: Api) -> None:
    await fill(api)
    params = {"symbol": "AAAUSDT", "limit": "1000", "fields": "symbol,price,timestamp,quantity"}
    _, body = await api.get("/v1/trades", **params)
    raw: dict[str, bytes] = {}
    for name in ("csv", "parquet", "arrow"):
        async with api.client.get(
            "/v1/trades", params={**params, "format": name}, headers=KEY
        ) as response:
            assert response.status == 200
            assert int(response.headers["X-Record-Count"]) == len(body["data"])
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert f".{name[:5]}" in response.headers["Content-Disposition"]
            raw[name] = await response.read()
    assert list(csv.DictReader(io.StringIO(raw["csv"].decode()))) == body["data"]
    arrow = pa.ipc.open_stream(raw["arrow"]).read_all()
    parquet = pq.read_table(io.BytesIO(raw["parquet"]))
    for table in (arrow, parquet):
        assert table.schema.field("price").type == pa.decimal128(28, 10)
        assert [str(Decimal(row["price"])) for row in body["data"]] == [
            format(value.normalize(), "f") for value in table["price"].to_pylist()
        ]
    accept = {**KEY, "Accept": "text/csv;q=0.9, */*"}
    async with api.client.get("/v1/trades", params=params, headers=accept) as response:
        assert response.content_type == "text/csv"
        assert await response.read() == raw["csv"]


@pytest.mark.parametrize("name", ["json", "csv", "parquet", "arrow"])
async def test_large_answers_come_in_pieces(
    api: Api, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_PIECE_ROWS", 100)
    text = "SELECT range AS i, range::VARCHAR AS t FROM range(450)"
    async with api.client.get(
        "/v1/sql", params={"sql": text, "limit": 450, "format": name}, headers=KEY
    ) as response:
        whole = await response.read()
    small: list[Any] = []
    if name == "json":
        import orjson

        small = [row["i"] for row in orjson.loads(whole)["data"]]
    elif name == "csv":
        small = [int(row["i"]) for row in csv.DictReader(io.StringIO(whole.decode()))]
    elif name == "parquet":
        small = pq.read_table(io.BytesIO(whole))["i"].to_pylist()
    else:
        small = pa.ipc.open_stream(whole).read_all()["i"].to_pylist()
    assert small == list(range(450))


async def test_a_page_of_memory_and_files_is_the_same_the_second_time(api: Api) -> None:
    """Then nothing is read: what the files have of it was kept."""
    times = [T0_US + 5_500_000, T0_US + 20_000_000]  # between rows of the file, and after them
    api.platform.produce(rows([15, 16], times), place())
    answers, tags = [], []
    for _ in range(2):
        async with api.client.get("/v1/trades?symbol=BTCUSDT&limit=6", headers=KEY) as response:
            tags.append(response.headers["ETag"])
            answers.append(await response.json())
    first, second = answers
    assert [row["platform_sequence"] for row in first["data"]] == [16, 9, 8, 7, 6, 15]
    assert (first["meta"].pop("files_read"), second["meta"].pop("files_read")) == (1, 0)
    assert second["data"] == first["data"]
    assert second["pagination"] == first["pagination"]
    assert second["meta"]["as_of"] == first["meta"]["as_of"]
    assert tags[0] == tags[1]
    cursor = second["pagination"]["next_cursor"]
    _, rest = await api.get("/v1/trades", symbol="BTCUSDT", limit=6, cursor=cursor)
    assert [row["platform_sequence"] for row in rest["data"]] == [5, 4, 3, 2, 1, 0]


async def test_an_unchanged_answer_is_304(api: Api) -> None:
    async with api.client.get("/v1/trades?limit=2", headers=KEY) as response:
        tag = response.headers["ETag"]
    headers = {**KEY, "If-None-Match": tag}
    async with api.client.get("/v1/trades?limit=2", headers=headers) as response:
        assert (response.status, await response.read()) == (304, b"")
    async with api.client.get("/v1/trades?limit=3", headers=headers) as response:
        assert response.status == 200
    await fill(api)
    async with api.client.get("/v1/trades?limit=2", headers=headers) as response:
        assert response.status == 200
    _, body = await api.get("/v1/snapshots")
    params = {"snapshot_id": body["data"][0]["snapshot_id"]}
    async with api.client.get("/v1/trades", params=params, headers=KEY) as response:
        assert "immutable" in response.headers["Cache-Control"]


async def test_stats(api: Api) -> None:
    _, body = await api.get("/v1/stats")
    assert body["data"]["tables"]["trades"]["rows"] == 15


async def test_many_symbols_are_one_question(api: Api) -> None:
    await fill(api)
    _, body = await api.get("/v1/trades", symbols="AAAUSDT,BBBUSDT", limit=20)
    assert {row["symbol"] for row in body["data"]} == {"AAAUSDT", "BBBUSDT"}
    times = [row["timestamp"] for row in body["data"]]
    assert times == sorted(times, reverse=True)


async def test_pages_from_memory_are_those_of_files(api: Api) -> None:
    """With `fields` an answer is made from the columns, without from rows that were made before."""
    await fill(api)
    pages = []
    for asked in ({}, {"fields": ",".join(TRADES.arrow_schema.names)}):
        status, body = await api.get("/v1/trades", symbol="AAAUSDT", limit=4, **asked)
        assert status == 200
        assert body["pagination"]["has_more"]
        cursor = body["pagination"]["next_cursor"]
        _, following = await api.get(
            "/v1/trades", symbol="AAAUSDT", limit=4, cursor=cursor, **asked
        )
        pages.append((body["data"], following["data"], body["meta"]["as_of"]))
    assert pages[0] == pages[1]
    params = {"symbol": "AAAUSDT", "limit": 4}
    async with api.client.get("/v1/trades", params=params, headers=KEY) as first:
        tag = first.headers["ETag"]
    again = {**KEY, "If-None-Match": tag}
    async with api.client.get("/v1/trades", params=params, headers=again) as second:
        assert second.status == 304
        assert not await second.read()
