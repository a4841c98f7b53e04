"""What the platform K2 replaces got wrong on its query side, W-17 to W-28: each shown to be right.

The names are those of the requirement list; what each weakness was stands in the docstring.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import REGISTRY

from k2.lake.history import Retention
from k2.lake.vector import Vector
from k2.query.lake_table import PinnedTable
from k2.query.sql import VIEWS
from k2.query.tail import Tail
from k2.setting_lake import Maintain
from k2.web.api import build_api
from k2.web.context import CONTEXT, Check
from k2.web.endpoints import ENDPOINTS
from k2.web.keys import KeyRing, new_key
from tests.query.rows import T0_US, batch, place, rows, upto
from tests.web.api import KEY, Api

MINUTE_US = 60_000_000
#: A whole hour with no trades of the fixture's in it.
H0_US = T0_US // (60 * MINUTE_US) * 60 * MINUTE_US + 120 * MINUTE_US
ENDLESS = "SELECT count(*) FROM range(100000000) a, range(1000000) b WHERE a.range < b.range"
EVIL = ("X' OR '1'='1", "BTCUSDT'; DROP TABLE trades --", 'x" OR 1=1', "../../etc/passwd;")


def store(api: Api, symbol: str, trades: list[tuple[int, str, str]], *, partition: int) -> None:
    """Put (µs after H0, price, quantity) into the lake, in this order."""
    table = rows(
        range(len(trades)), [H0_US + at for at, _, _ in trades], symbols=symbol,
        prices=[Decimal(price) for _, price, _ in trades],
        quantities=[Decimal(size) for _, _, size in trades], partition=partition,
    )  # fmt: skip
    api.platform.commit(table, place(partition))
    api.platform.refresh()


@asynccontextmanager
async def served(api: Api, **changes: Any) -> AsyncIterator[Api]:
    """The same platform behind a server that differs in `changes`."""
    context = dataclasses.replace(api.client.app[CONTEXT], **changes)
    client = TestClient(TestServer(build_api(context)))
    await client.start_server()
    yield Api(api.platform, client)
    await client.close()


def numbers(body: dict[str, Any]) -> list[int]:
    return [row["platform_sequence"] for row in body["data"]]


async def test_w17_a_late_trade_corrects_its_candle_and_history_is_kept(api: Api) -> None:
    """W-17: no path for late data, and 7 days of history where 90 were promised."""
    store(api, "LATEUSDT", [(0, "10", "1"), (59_000_000, "12", "1")], partition=4)
    asked = {"symbol": "LATEUSDT", "start_time": H0_US, "end_time": H0_US + MINUTE_US}
    _, before = await api.get("/v1/ohlcv/1m", **asked)
    api.platform.tails["trades"].start(place(4), 1)
    late = rows([2], [H0_US + 30_000_000], symbols="LATEUSDT", prices=[Decimal(99)], partition=4)
    api.platform.produce(late, place(4))
    _, after = await api.get("/v1/ohlcv/1m", **asked)
    (old,), (new,) = before["data"], after["data"]
    assert (old["high"], old["trade_count"]) == ("12", 2)
    assert (new["high"], new["close"], new["trade_count"]) == ("99", "12", 3)
    assert Retention().days >= 90
    assert Maintain(_env_file=None).days_of("trades") == 0, "rows stay for ever"


async def test_w18_replay_snapshot_and_aggregation_answer(api: Api) -> None:
    """W-18: all three failed always; a snapshot id was taken for a version of the metadata."""
    store(api, "OLDUSDT", [(0, "10", "1"), (1_000_000, "11", "2")], partition=4)
    hour = {"start_time": H0_US, "end_time": H0_US + 60 * MINUTE_US}
    status, body = await api.post({"symbols": ["OLDUSDT"], **hour}, "/v1/replay")
    assert (status, numbers(body)) == (200, [0, 1])
    _, history = await api.get("/v1/snapshots")
    newest, oldest = (history["data"][at]["snapshot_id"] for at in (0, -1))
    path = "/v1/snapshots/{}/query"
    assert len((await api.post({"symbol": "OLDUSDT"}, path.format(newest)))[1]["data"]) == 2
    assert (await api.post({"symbol": "OLDUSDT"}, path.format(oldest)))[1]["data"] == []
    asked = {"symbols": ["OLDUSDT"], "metrics": ["vwap"], "interval": "1min", **hour}
    status, body = await api.post(asked, "/v1/aggregations")
    assert (status, Decimal(body["data"][0]["vwap"])) == (200, Decimal("10.66666667"))


@pytest.mark.parametrize("text", EVIL)
async def test_w19_input_never_becomes_sql(api: Api, text: str) -> None:
    """W-19: symbols and exchanges were pasted into SQL."""
    hour = {"start_time": H0_US, "end_time": H0_US + MINUTE_US}
    aggregates = {"metrics": ["vwap"], "interval": "1min", **hour}
    for name in ("symbol", "exchange"):
        given = {"symbol": "BTCUSDT", name: text}
        for path in ("/v1/trades", "/v1/ohlcv/1m", "/v1/asof"):
            status, body = await api.get(path, **given)
            assert (status, body["detail"]["parameter"]) == (422, name), path
        bodies = {
            "/v1/replay": {**given, **hour},
            "/v1/snapshots/1/query": given,
            "/v1/aggregations": {
                "symbols": [given["symbol"]], "exchange": given.get("exchange"), **aggregates
            },
        }  # fmt: skip
        for path, sent in bodies.items():
            status, body = await api.post(sent, path)
            assert (status, body["detail"]["parameter"].rstrip("s")) == (422, name), path
    status, _ = await api.post({"sql": f"SELECT * FROM trades WHERE symbol = '{text}'"})
    assert status in (200, 400)
    assert len((await api.get("/v1/trades"))[1]["data"]) == 15, "nothing was dropped"


async def test_w20_hot_and_cold_meet_without_hole_or_double(api: Api) -> None:
    """W-20: a cut by the clock left a hole when commits lagged, and dropped the newest rows."""
    many = rows(range(60), [H0_US + at * 1_000_000 for at in range(60)], symbols="SEAMUSDT",
                partition=5)  # fmt: skip
    api.platform.commit(many.slice(0, 20), place(5))
    api.platform.refresh()
    api.platform.tails["trades"].start(place(5), 9)
    api.platform.produce(many.slice(10), place(5))
    _, body = await api.get("/v1/trades", symbol="SEAMUSDT", limit=1000)
    assert numbers(body) == list(range(59, -1, -1))
    _, body = await api.get("/v1/trades", symbol="SEAMUSDT", limit=3)
    assert numbers(body) == [59, 58, 57], "the newest are never cut"
    # The lake falls far behind: nothing is missing.
    api.platform.produce(rows([60], [H0_US + 7_200_000_000], symbols="SEAMUSDT", partition=5),
                         place(5))  # fmt: skip
    _, body = await api.get("/v1/trades", symbol="SEAMUSDT", limit=1000)
    assert numbers(body) == list(range(60, -1, -1))


def test_w20_rows_leave_memory_under_steady_load_and_with_a_silent_symbol() -> None:
    """W-20: trimming by age never ran under steady load, nor for a symbol that fell silent."""
    made = rows(range(1), [T0_US])
    tail = Tail(made.schema)
    tail.start(place(), -1)
    for second in range(200):
        name = "SILENTUSDT" if second == 0 else "BUSYUSDT"
        one = rows([second], [T0_US + second], symbols=name)
        tail.add(place(), batch(one), last=second, now_s=float(second))
        vector = upto_vector(second)
        tail.trim(float(second), vector, max_minutes=1, max_bytes=10**9)
    held = tail.view().rows_above(upto_vector(-1))
    assert "SILENTUSDT" not in held["symbol"].to_pylist()
    assert held.num_rows <= 125, "what is younger than a minute, and a chunk of a minute's span"


def upto_vector(sequence: int) -> Any:

    return Vector({place(): upto(sequence)} if sequence >= 0 else {})


async def test_w21_keys_can_be_changed_and_have_their_limits(api: Api) -> None:
    """W-21: one shared key that no setting changed, no limit, and X-Forwarded-For believed."""
    reader, entry = new_key("reader", ["read"], 12)
    async with served(api, keys=KeyRing([entry])) as made:
        await _keys_of(made, reader)


async def _keys_of(api: Api, reader: str) -> None:
    async with api.client.get("/v1/status", headers=KEY) as response:
        assert response.status == 403, "the key of before"
    async with api.client.get("/v1/status", headers={"X-API-Key": reader[:8]}) as response:
        assert response.status == 403, "all of the key counts"
    answers = []
    for number in range(6):
        forged = {"X-API-Key": reader, "X-Forwarded-For": f"10.0.0.{number}"}
        async with api.client.get("/v1/status", headers=forged) as response:
            answers.append(response.status)
    assert answers[0] == 200
    assert answers[-1] == 429, "another address does not buy another bucket"


async def test_w22_a_slow_query_holds_up_nobody_and_ends(api: Api) -> None:
    """W-22: a slow query stalled every request, and no deadline could fire."""
    engine = api.platform.make_engine(timeout_s=1.5)
    async with served(api, queries=engine) as made:
        slow = asyncio.create_task(made.post({"sql": ENDLESS}))
        while engine.stats().running == 0:  # noqa: ASYNC110 - a thread begins
            await asyncio.sleep(0.001)
        answered = 0
        while not slow.done():
            assert (await made.get("/health/live"))[0] == 200
            assert (await made.get("/v1/trades", symbol="ETHUSDT"))[0] == 200
            answered += 1
        assert answered > 1, "others were answered while it ran"
        assert (await slow)[0] == 504
    engine.close()


async def test_w23_pages_go_on_and_belong_to_a_snapshot(api: Api) -> None:
    """W-23: second pages were empty, totals ignored the time, cursors ignored new data."""
    store(api, "PAGEUSDT", [(at * 1_000_000, "1", "1") for at in range(250)], partition=6)
    _, first = await api.get("/v1/trades", symbol="PAGEUSDT", limit=100)
    cursor = first["pagination"]["next_cursor"]
    _, second = await api.get("/v1/trades", symbol="PAGEUSDT", limit=100, cursor=cursor)
    assert numbers(first) + numbers(second) == list(range(249, 49, -1))
    asked = {"symbols": ["PAGEUSDT"], "batch_size": 100, "start_time": H0_US,
             "end_time": H0_US + 150_000_000}  # fmt: skip
    _, one = await api.post(asked, "/v1/replay")
    assert one["meta"]["batch_info"]["total_records"] == 150, "only those of the time asked for"
    more = rows([250], [H0_US + 120_000_000], symbols="PAGEUSDT", partition=6)
    api.platform.commit(more, place(6))
    api.platform.refresh()
    _, two = await api.post({**asked, "cursor": one["pagination"]["next_cursor"]}, "/v1/replay")
    assert numbers(one) + numbers(two) == list(range(150)), "the snapshot of the first batch"


async def test_w24_many_symbols_are_one_fair_question(api: Api) -> None:
    """W-24: symbols were read in turn until the limit, so the first ones filled the answer."""
    for number, symbol in enumerate(("AAUSDT", "BBUSDT", "CCUSDT")):
        trades = [(at * 3_000_000 + number * 1_000_000, "1", "1") for at in range(20)]
        store(api, symbol, trades, partition=7 + number)
    _, body = await api.get("/v1/trades", symbols="AAUSDT,BBUSDT,CCUSDT", limit=9)
    assert [row["symbol"] for row in body["data"]] == ["CCUSDT", "BBUSDT", "AAUSDT"] * 3


async def test_w25_health_tells_the_truth_and_scans_nothing(api: Api) -> None:
    """W-25: 200 while unhealthy after a full scan; candle health and batches never answered."""

    def queries() -> float:
        return sum(
            sample.value
            for metric in REGISTRY.collect()
            if metric.name == "k2_query_executions"
            for sample in metric.samples
        )

    before = queries()
    assert (await api.get("/health"))[0] == 200
    api.checks.append(Check("log", "unhealthy", "the log has not answered for 20 s"))
    for path in ("/health", "/health/ready"):
        status, body = await api.get(path)
        assert status == 503, path
    assert "20 s" in json.dumps(body)
    assert (await api.get("/health/live"))[0] == 200
    assert queries() == before
    assert (await api.get("/v1/ohlcv/health"))[0] == 200
    asked = {"requests": [{"timeframe": "1m", "symbol": "BTCUSDT"}, {"timeframe": "1d",
             "symbol": "NOPE"}]}  # fmt: skip
    assert (await api.post(asked, "/v1/ohlcv/batch"))[0] == 200


async def test_w26_figures_are_what_they_are_called(api: Api) -> None:
    """W-26: TWAP was a mean of prices; no volume profile, no 15m; off-market prints in candles."""
    store(api, "TWAPUSDT", [(0, "10", "1"), (45_000_000, "50", "3")], partition=4)
    asked = {"symbols": ["TWAPUSDT"], "metrics": ["twap", "volume_profile"], "interval": "1min",
             "start_time": H0_US, "end_time": H0_US + MINUTE_US, "levels": 2}  # fmt: skip
    _, body = await api.post(asked, "/v1/aggregations")
    (row,) = body["data"]
    assert Decimal(row["twap"]) == Decimal(20), "45 s of 10 and 15 s of 50"
    assert [level["volume"] for level in row["volume_profile"]] == ["1", "3"]
    status, body = await api.get("/v1/ohlcv/15m", symbol="TWAPUSDT")
    assert (status, body["data"][0]["trade_count"]) == (200, 2)
    prints = rows([0, 1], [H0_US, H0_US + 1], symbols="OFFUSDT", prices=[Decimal(5), Decimal(500)],
                  partition=8)  # fmt: skip
    marked = prints.set_column(
        prints.schema.get_field_index("trade_conditions"),
        prints.schema.field("trade_conditions"),
        [[None, ["3"]]],
    )
    api.platform.commit(marked, place(8))
    api.platform.refresh()
    _, body = await api.get("/v1/ohlcv/1m", symbol="OFFUSDT", exclude_conditions="3")
    assert body["data"][0]["high"] == "5"


async def test_w27_only_what_the_catalog_names_is_read(api: Api) -> None:
    """W-27: the newest-looking metadata file was read, committed or not."""
    folder = api.platform.warehouse / "market_data" / "trades" / "metadata"
    known = sorted(folder.glob("*.metadata.json"))
    forged = json.loads(known[-1].read_text())
    forged["current-snapshot-id"] = None
    forged["snapshots"], forged["refs"] = [], {}
    (folder / "99999-ffffffff-ffff-ffff-ffff-ffffffffffff.metadata.json").write_text(
        json.dumps(forged)
    )
    shutil.copy(known[0], folder / "v99999.metadata.json")
    (folder / "version-hint.text").write_text("99999")
    api.platform.refresh()
    assert isinstance(api.platform.tables["trades"], PinnedTable)
    _, body = await api.get("/v1/trades")
    assert len(body["data"]) == 15


def test_w28_the_documentation_names_what_there_is() -> None:
    """W-28: documents described parameters, fields and keys that did not exist."""
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    by_path = {(one.method, one.path): one for one in ENDPOINTS}
    table = re.findall(r"^\| ((?:GET|POST)[^|]*)\| ([^|]*)\|", text, re.MULTILINE)
    documented = set()
    for where, what in table:
        named: set[str] = set()
        methods: list[str] = []
        for methods_text, path in re.findall(r"((?:(?:GET|POST)(?:, )?)*)\s*`(/[^`]*)`", where):
            methods = re.findall("GET|POST", methods_text) or methods
            for method in methods:
                if path.startswith("/faust"):
                    continue
                endpoint = by_path[method, path]
                documented.add((method, path))
                named |= set(endpoint.takes.model_fields)
                values = json.dumps(endpoint.takes.model_json_schema())
                named |= set(re.findall(r"\w+", values))
        for word in re.findall(r"`([a-z_]+)(?:=\w+)?`", what):
            known = word in named or word in VIEWS
            assert known, f"{where.strip()}: {word}"
    assert len(documented) > 20
    (views,) = (what for where, what in table if "/v1/sql" in where)
    assert set(VIEWS) == set(re.findall(r"`([a-z_]+)`", views))
    undocumented = {path for _, path in by_path} - {path for _, path in documented}
    assert not {path for path in undocumented if path.startswith("/v1/")}
