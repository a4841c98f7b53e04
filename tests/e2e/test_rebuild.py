"""The lake is made anew from the log of record, and a log of record from the lake."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from k2.cli.main import cli
from k2.client import Rows
from k2.errors import LakeError
from k2.replay.refill import refill
from k2.settings import load_settings
from k2.topics import BINANCE_TRADES
from tests.data import BTC_0808, require
from tests.e2e.harness import Stack, catalog, gap_ranges, quote_ids, run_demo, trade_ids

pytestmark = pytest.mark.timeout(300)

#: Of a row, what it is; when it was handed to the log is in the log too.
COLUMNS = ("trade_id", "symbol", "timestamp", "price", "quantity", "side", "platform_sequence")


def lose_the_lake(data: Path) -> None:
    shutil.rmtree(data / "warehouse")
    for file in data.glob("catalog.db*"):
        file.unlink()


def rows(data: Path) -> list[dict[str, object]]:
    table = catalog(data).load_table("market_data.trades")
    found: list[dict[str, object]] = (
        table.scan(selected_fields=COLUMNS).to_arrow().sort_by("trade_id").to_pylist()
    )
    return found


@pytest.mark.parametrize("app_id", ["k2", "k2-rebuild"], ids=["validated kept", "from the record"])
async def test_the_lake_is_made_anew_from_the_log(tmp_path: Path, app_id: str) -> None:
    """By the validated log; and, under another app id, by validating the log of record again."""
    require(BTC_0808)
    data = tmp_path / "data"
    report = await run_demo(data, BTC_0808)
    before, quotes = rows(data), quote_ids(data)
    lose_the_lake(data)
    async with Stack(tmp_path) as stack:
        await stack.start_worker(K2_BINANCE_ENABLED="false", K2_APP_ID=app_id)
        await stack.until(
            "all is stored again",
            lambda s: (
                s["drained"]
                and {name: one["rows"] for name, one in s["sink"]["tables"].items()}.items()
                >= report["lake"].items()
            ),
            120,
        )
        assert await stack.stop_worker() == 0
    assert rows(data) == before
    assert quote_ids(data) == quotes
    assert len(trade_ids(data)) == len(set(trade_ids(data)))
    assert gap_ranges(data) == []


async def test_a_topic_is_made_anew_from_the_lake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is lost, the lake is not: what reads the topic gets every trade, a lake made of it is
    the same, and the lake it was made of gets none a second time."""
    require(BTC_0808)
    data, home = tmp_path / "data", tmp_path / "anew"
    anew = home / "data"
    await run_demo(data, BTC_0808)
    before = rows(data)

    def refill() -> Result:
        asked = ["topics", "refill", BINANCE_TRADES.log, "--from", "2024-08-08", "--to"]
        return CliRunner().invoke(cli, [*asked, "2024-08-10", "--data-dir", str(data), "--json"])

    monkeypatch.setenv("K2_DATA_DIR", str(anew))
    first = await asyncio.to_thread(refill)
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout.splitlines()[-1])["records"] == len(before)
    again = await asyncio.to_thread(refill)
    assert again.exit_code == 2
    assert f"has {len(before):,} records" in again.stderr
    async with Stack(home) as stack:
        await stack.start_worker(K2_BINANCE_ENABLED="false")
        await stack.until("all is stored", lambda s: _stored(s) == len(before), 120)
        assert await stack.stop_worker() == 0
    # The same beside the lake it was made of.
    shutil.rmtree(data / "log")
    monkeypatch.setenv("K2_DATA_DIR", str(data))
    beside = await asyncio.to_thread(refill)
    assert beside.exit_code == 0, beside.output
    async with Stack(tmp_path) as stack:
        await stack.start_worker(K2_BINANCE_ENABLED="false")
        await stack.until(
            "all is judged", lambda s: s["validate"]["duplicates"] == len(before), 120
        )
        assert await stack.stop_worker() == 0
    assert rows(data) == before
    told = [name for name in COLUMNS if name != "platform_sequence"]
    assert [{name: row[name] for name in told} for row in rows(anew)] == [
        {name: row[name] for name in told} for row in before
    ]


@pytest.mark.parametrize(
    ("topic", "said"),
    [
        ("market.crypto.quotes.kraken", "no ids of their own"),
        ("market.crypto.trades.binance.validated", "no log of record"),
        ("market.crypto.trades.coinbase", "not in the catalogue"),
        ("trades", "is not market."),
    ],
)
def test_a_topic_the_lake_cannot_make_is_refused(topic: str, said: str) -> None:
    asked = ["topics", "refill", topic, "--from", "2024-08-08", "--to", "2024-08-10"]
    result = CliRunner().invoke(cli, asked)
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr


async def test_an_answer_that_was_cut_short_is_no_end(tmp_path: Path) -> None:
    settings = load_settings().model_copy(
        update={"core": load_settings().core.model_copy(update={"data_dir": tmp_path})}
    )

    async def cut() -> AsyncIterator[Rows]:
        yield Rows(pa.table({}), as_of={}, partial=True)

    with pytest.raises(LakeError, match="cut short after 0 records"):
        await refill(settings, BINANCE_TRADES, cut(), lambda _: None)


def _stored(status: dict[str, Any]) -> int:
    return int(status["sink"]["tables"]["trades"]["rows"])
