"""What an answer could see: how fresh it was, in every format and as of any state of the lake."""

from __future__ import annotations

import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from k2.lake.tables import QUOTES, TRADES
from k2.testing.clock import ManualClock
from k2.web import formats
from tests.query.rows import T0_US, place, rows
from tests.web.api import KEY, Api


@pytest.mark.parametrize("name", ["csv", "parquet", "arrow"])
async def test_last_trade_and_quote_side_by_side(api: Api, name: str) -> None:
    async with api.client.get("/v1/latest", params={"format": name}, headers=KEY) as response:
        raw = await response.read()
        assert set(json.loads(response.headers["X-K2-As-Of"])) == {"trades", "quotes"}
        assert set(json.loads(response.headers["X-K2-Fresh-Ms"])) == {"trades", "quotes"}
    if name == "csv":
        found = list(csv.DictReader(io.StringIO(raw.decode())))
        columns, nothing = list(found[0]), ""
    else:
        source = pa.ipc.open_stream(raw) if name == "arrow" else pq.ParquetFile(io.BytesIO(raw))
        table = source.read_all() if name == "arrow" else source.read()
        assert table.schema.field("trade_price").type == pa.decimal128(28, 10)
        found, columns, nothing = table.to_pylist(), table.column_names, None
    keys = ["symbol", "exchange"]
    assert columns == [
        *keys,
        *(f"trade_{one}" for one in TRADES.arrow_schema.names if one not in keys),
        *(f"quote_{one}" for one in QUOTES.arrow_schema.names if one not in keys),
    ]
    assert [row["symbol"] for row in found] == ["BTCUSDT", "ETHUSDT"]
    assert [int(row["trade_platform_sequence"]) for row in found] == [9, 14]
    assert found[0]["quote_quote_id"] == "1000000"
    assert found[1]["quote_quote_id"] == nothing


async def test_an_answer_says_how_fresh_it_is(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock(T0_US + 20_000_000)
    monkeypatch.setattr(formats, "SYSTEM_CLOCK", clock)
    for path in ("/v1/trades", "/v1/trades?symbol=ETHUSDT&limit=2", "/v1/symbols"):
        _, body = await api.get(path)
        assert body["meta"]["fresh_ms"] == {"trades": 6_000}, path
    # The quote is in the lake only.
    _, body = await api.get("/v1/latest")
    assert body["meta"]["fresh_ms"] == {"trades": 6_000, "quotes": 20_000}
    _, body = await api.post({"sql": "SELECT count(*) FROM gaps"})
    assert body["meta"]["fresh_ms"] == {"gaps": None}
    async with api.client.get("/v1/trades", headers=KEY) as response:
        tag = response.headers["ETag"]
    await clock.advance(1.5)
    async with api.client.get("/v1/trades", headers={**KEY, "If-None-Match": tag}) as response:
        assert response.status == 304
    _, body = await api.get("/v1/trades")
    assert body["meta"]["fresh_ms"] == {"trades": 7_500}


async def test_states_of_the_lake_that_answers_can_be_of(api: Api) -> None:
    api.platform.commit(rows(range(3), [T0_US] * 3, symbols="NEWUSDT", partition=4), place(4))
    api.platform.refresh()
    _, history = await api.get("/v1/snapshots")
    newest, oldest = (history["data"][at]["snapshot_id"] for at in (0, -1))
    for snapshot, known in ((newest, True), (oldest, False)):
        async with api.client.get(
            "/v1/symbols", params={"snapshot_id": snapshot}, headers=KEY
        ) as response:
            assert ("NEWUSDT" in (await response.json())["data"]) is known
            assert "immutable" in response.headers["Cache-Control"]
        asked = {
            "symbols": ["NEWUSDT"], "metrics": ["trade_count"], "interval": "1day",
            "start_time": "2024-08-08", "end_time": "2024-08-09", "snapshot_id": snapshot,
        }  # fmt: skip
        _, body = await api.post(asked, "/v1/aggregations")
        assert bool(body["data"]) is known
        assert body["meta"]["as_of"]["trades"]["snapshot_id"] == snapshot


async def test_a_batch_of_candles_as_of_a_time(api: Api) -> None:
    _, history = await api.get("/v1/snapshots")
    when = history["data"][0]["timestamp"]
    api.platform.commit(rows([3], [T0_US], symbols="BTCUSDT", partition=4), place(4))
    api.platform.refresh()
    asked = {"requests": [{"timeframe": "1d", "symbol": "BTCUSDT"}]}
    counts = []
    for more in ({}, {"as_of": when}):
        _, body = await api.post({**asked, **more}, "/v1/ohlcv/batch")
        counts.append(sum(row["trade_count"] for row in body["data"]["1d_BTCUSDT"]["data"]))
    assert counts == [11, 10]
