"""The lake is lost, the log is not: it is made anew from the log of record."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

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
