"""The client against a real server: what it gives, how it pages, what its errors say."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pyarrow as pa
import pytest

from k2.client import (
    ApiAccessError,
    ApiError,
    ApiNotFoundError,
    ApiRequestError,
    ApiUnreachableError,
    K2Client,
)
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
