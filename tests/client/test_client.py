"""The client against a real server: what it gives, how it pages, what its errors say."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from aiohttp import web

from k2.client import (
    ApiAccessError,
    ApiBusyError,
    ApiError,
    ApiNotFoundError,
    ApiRequestError,
    ApiUnreachableError,
    K2Client,
    Rows,
    Series,
)
from k2.client.figures import Metric
from k2.clock import SYSTEM_CLOCK
from k2.errors import Overloaded, QueryTimeout
from k2.web.endpoints import ENDPOINTS
from k2.web.models import CandlesBatchItem
from k2.web.resources import candles, stream
from tests.query.rows import T0_US, place, rows
from tests.web.api import Api

T0 = dt.datetime(2024, 8, 8, 23, 58, 20, tzinfo=dt.UTC)


def sequences(table: pa.Table) -> list[int]:
    return table["platform_sequence"].to_pylist()


async def test_trades_are_arrow_with_exact_types(client: K2Client) -> None:
    found = await client.trades("BTCUSDT", limit=3)
    assert sequences(found.table) == [9, 8, 7]
    assert found.table.schema.field("price").type == pa.decimal128(28, 10)
    assert found.to_pylist()[0]["price"] == Decimal("2.25")
    assert found.to_pylist()[0]["timestamp"] == T0 + dt.timedelta(seconds=9)
    assert set(found.as_of) == {"trades"}
    assert (len(found), found.partial) == (3, False)


async def test_pages_go_to_the_end_once_whatever_is_written(api: Api, client: K2Client) -> None:
    seen: list[int] = []
    async for page in client.pages("trades", page_rows=4, order="asc"):
        seen += sequences(page.table)
        if len(seen) == 4:
            # Late: it lies before what was read, and must neither shift nor repeat a row.
            api.platform.produce(rows([15], [T0_US - 1]), place())
    assert seen == list(range(15))
    assert sequences((await client.trades(["BTCUSDT", "ETHUSDT"], limit=12)).table) == [
        *range(14, 2, -1)
    ]


async def test_times_are_text_numbers_or_aware(client: K2Client) -> None:
    start, end = T0 + dt.timedelta(seconds=2), T0 + dt.timedelta(seconds=5)
    for given in ((start, end), (start.isoformat(), end.isoformat()), (T0_US + 2_000_000, end)):
        found = await client.trades(start=given[0], end=given[1], order="asc")
        assert sequences(found.table) == [2, 3, 4]
    with pytest.raises(ApiRequestError, match="no time zone"):
        await client.trades(start=start.replace(tzinfo=None))


async def test_every_question_has_an_answer(api: Api, client: K2Client) -> None:
    assert len(await client.quotes("BTCUSDT")) == 1
    assert (await client.symbols()).table["symbol"].to_pylist() == ["BTCUSDT", "ETHUSDT"]
    (candle,) = (await client.ohlcv("BTCUSDT", "1h")).to_pylist()
    assert (candle["trade_count"], candle["close"]) == (10, Decimal("2.25"))
    (day,) = (await client.summary("BTCUSDT", dt.date(2024, 8, 8))).to_pylist()
    assert day["trade_count"] == 10
    assert len(await client.latest("trades")) == 2
    assert len(await client.asof("BTCUSDT", limit=2)) == 2
    (count,) = (await client.sql("select count(*) as n from trades")).to_pylist()
    assert count == {"n": 15}
    (snapshot,) = (await client.snapshots()).to_pylist()
    travelled = await client.trades(snapshot_id=snapshot["snapshot_id"])
    assert len(travelled) == 10, "the lake at that time; no hot rows"
    assert len(await client.gaps()) == 0
    assert (await client.status())["roles"] == ["query"]


async def test_records_filtered_and_of_the_last_minutes(api: Api, client: K2Client) -> None:
    found = await client.trades_query(
        ["BTCUSDT", "ETHUSDT"],
        exchanges="binance",
        sides=["BUY"],
        min_price=Decimal("1.5"),
        max_price=3,
        min_quantity="0.5",
        max_quantity="0.5",
        order="asc",
        limit=4,
        fields=["platform_sequence", "price"],
    )
    assert found.table.column_names == ["platform_sequence", "price"]
    assert sequences(found.table) == [6, 7, 8, 9]
    following = await client.trades_query(
        ["BTCUSDT", "ETHUSDT"],
        exchanges="binance",
        sides=["BUY"],
        min_price=Decimal("1.5"),
        max_price=3,
        min_quantity="0.5",
        max_quantity="0.5",
        order="asc",
        limit=4,
        cursor=found.next_cursor,
    )
    assert (sequences(following.table), following.next_cursor) == ([10, 11, 12], None)
    assert len(await client.trades_query(sides=["SELL"])) == 0
    with pytest.raises(ApiRequestError, match="min_price"):
        await client.trades_query(min_price=3, max_price=2)
    assert len(await client.quotes_query("BTCUSDT", start=T0, limit=10)) == 1
    (snapshot,) = (await client.snapshots("trades")).to_pylist()
    of_it = await client.snapshot_query(snapshot["snapshot_id"], symbol="BTCUSDT", offset=8)
    assert sequences(of_it.table) == [1, 0]
    assert len(await client.recent("BTCUSDT", "BINANCE")) == 0, "the rows are of 2024"
    api.platform.produce(rows([15], [SYSTEM_CLOCK.now_us()]), place())
    assert sequences((await client.recent("BTCUSDT", "BINANCE")).table) == [15]


async def test_the_last_trade_and_quote_side_by_side(client: K2Client) -> None:
    found = await client.latest("both")
    assert found.table.schema.field("quote_bid_price").type == pa.decimal128(28, 10)
    bitcoin, ether = found.to_pylist()
    assert (bitcoin["symbol"], bitcoin["trade_price"]) == ("BTCUSDT", Decimal("2.25"))
    assert bitcoin["quote_bid_price"] == Decimal(0)
    assert (ether["trade_platform_sequence"], ether["quote_bid_price"]) == (14, None)
    assert set((await client.latest("both", "ETHUSDT")).as_of) == {"trades", "quotes"}


async def test_figures_over_intervals(api: Api, client: K2Client) -> None:
    end = T0 + dt.timedelta(minutes=1)
    metrics: list[Metric] = ["ohlcv", "twap", "volume_profile"]
    (row, *_) = (
        await client.aggregations("BTCUSDT", metrics, "1min", T0, end, levels=2)
    ).to_pylist()
    assert (row["open"], row["close"]) == (Decimal(0), Decimal("2.25"))
    assert [level["trade_count"] for level in row["volume_profile"]] == [5, 5]
    found = await client.ohlcv_batch(
        [Series("BTCUSDT", "1h"), Series("ETHUSDT", start=T0, end=end, exchange="BINANCE")]
    )
    hours, minutes = found["1h_BTCUSDT"], found["1m_ETHUSDT_BINANCE"]
    assert isinstance(hours, Rows)
    assert isinstance(minutes, Rows)
    asked = await client.ohlcv("BTCUSDT", "1h")
    assert hours.table.equals(asked.table), "types and digits as if asked for alone"
    assert (len(minutes), set(minutes.as_of)) == (1, {"trades"})
    of_before = await client.ohlcv_batch([Series("ETHUSDT")], as_of=dt.datetime.now(dt.UTC))
    cold = of_before["1m_ETHUSDT"]
    assert isinstance(cold, Rows)
    assert (len(cold), cold.table.schema) == (0, asked.table.schema), "its rows are hot ones"
    assert (await client.ohlcv_health("BTCUSDT"))["overall"] == "stale"
    marked = rows([15], [T0_US], prices=[Decimal(500)])
    marked = marked.set_column(
        marked.schema.get_field_index("trade_conditions"),
        marked.schema.field("trade_conditions"),
        [[["3"]]],
    )
    api.platform.produce(marked, place())
    for left_out, high in ((None, Decimal(500)), (["3"], Decimal("2.25"))):
        hour = await client.ohlcv("BTCUSDT", "1h", exclude_conditions=left_out)
        day = await client.summary("BTCUSDT", "2024-08-08", exclude_conditions=left_out)
        in_batch = await client.ohlcv_batch([Series("BTCUSDT", exclude_conditions=left_out)])
        minute = in_batch["1m_BTCUSDT"]
        assert isinstance(minute, Rows)
        ranges = await client.aggregations(
            "BTCUSDT", ["ohlcv"], "1hour", T0, end, exclude_conditions=left_out
        )
        for found_high in (hour, day, minute, ranges):
            assert found_high.to_pylist()[0]["high"] == high


async def test_one_series_that_fails_leaves_the_others(
    client: K2Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = candles._period

    async def failing(request: web.Request, item: CandlesBatchItem, *more: Any) -> Any:
        if item.symbol == "ETHUSDT":
            raise QueryTimeout("too slow")
        return await whole(request, item, *more)

    monkeypatch.setattr(candles, "_period", failing)
    found = await client.ohlcv_batch([Series("BTCUSDT"), Series("ETHUSDT")])
    assert isinstance(found["1m_BTCUSDT"], Rows)
    error = found["1m_ETHUSDT"]
    assert isinstance(error, ApiError)
    assert (error.message, error.details) == ("too slow", {"error": "query_timeout"})


async def test_every_read_is_a_method(api: Api, client: K2Client) -> None:
    """The paths that methods ask are those there are, but for what only an admin may do."""
    end = T0 + dt.timedelta(hours=1)
    (snapshot,) = (await client.snapshots()).to_pylist()
    for asked in (
        client.trades(), client.quotes(), client.recent("BTCUSDT", "BINANCE"),
        client.trades_query(), client.quotes_query(),
        client.snapshot_query(snapshot["snapshot_id"]), client.latest(), client.asof("BTCUSDT"),
        client.symbols(fields=["symbol"]), client.summary("BTCUSDT", "2024-08-08"),
        client.ohlcv("BTCUSDT"), client.ohlcv_batch([Series("BTCUSDT")]), client.ohlcv_health(),
        client.aggregations("BTCUSDT", ["vwap"], "1hour", T0, end), client.sql("select 1"),
        client.gaps(), client.feeds(), client.stats(), client.status(), client.degradation(),
        client.shed(), client.workers(), anext(client.replay("trades", T0, end)),
    ):  # fmt: skip
        await asked
    there = {one.path for one in ENDPOINTS if one.path.startswith("/v1/") and one.scope != "admin"}
    assert {done.route for done in api.done} == there - {"/v1/stream"}, "which has no end"
    assert (await client.stats())["tables"]["trades"]["rows"] == 15
    assert (await client.degradation())["level"] == "NORMAL"
    assert await client.feeds() == []


async def test_replay_and_stream(api: Api, client: K2Client) -> None:
    end = T0 + dt.timedelta(days=1)
    found = [batch async for batch in client.replay("trades", T0, end, batch_size=100)]
    assert [sequences(batch.table) for batch in found] == [[*range(10)]]
    kinds = []
    async for kind, data in client.stream(symbols="ETHUSDT", snapshot=2):
        kinds.append((kind, [row["platform_sequence"] for row in data]))
        if len(kinds) == 2:
            break
        api.platform.produce(rows([15], [T0_US], symbols="ETHUSDT"), place())
    assert kinds == [("snapshot", [13, 14]), ("rows", [15])]


async def test_a_stream_tells_of_its_holes_and_of_its_end(
    api: Api, client: K2Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_MOST", 2)
    reading = client.stream(symbols="BTCUSDT", snapshot=1)
    assert (await anext(reading))[0] == "snapshot"
    api.platform.produce(rows(range(15, 20), [T0_US + i for i in range(5)]), place())
    assert await anext(reading) == ("skipped", [{"count": 3}])
    kind, newest = await anext(reading)
    assert (kind, [row["platform_sequence"] for row in newest]) == ("rows", [18, 19])

    def failing(*_given: object) -> None:
        raise Overloaded("the pool is full")

    monkeypatch.setattr(stream.Follower, "news", failing)
    api.platform.produce(rows([20], [T0_US]), place())
    with pytest.raises(ApiBusyError, match="the pool is full") as busy:
        await anext(reading)
    assert busy.value.details == {"error": "overloaded", "retry_after_s": 5}


async def test_errors_say_what_the_server_said(api: Api, client: K2Client) -> None:
    with pytest.raises(ApiRequestError, match="exchange") as wrong:
        await client.trades(exchange="not an exchange")
    assert wrong.value.details["status"] == 422
    assert wrong.value.details["parameter"] == "exchange"
    assert wrong.value.details["correlation_id"]
    with pytest.raises(ApiRequestError, match="nowhere"):
        await client.sql("select * from nowhere")
    with pytest.raises(ApiNotFoundError, match="XYZUSDT"):
        await client.ohlcv("XYZUSDT")
    async with K2Client(str(api.client.make_url("")), key="wrong") as stranger:
        with pytest.raises(ApiAccessError):
            await stranger.trades()
        with pytest.raises(ApiAccessError):
            await anext(stranger.stream())
    async with K2Client("http://127.0.0.1:1") as nobody:
        with pytest.raises(ApiUnreachableError, match="does not answer"):
            await nobody.trades()
    assert issubclass(ApiNotFoundError, ApiError)
