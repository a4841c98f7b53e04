"""Reference data: from an exchange's answer or a table to rows that hold from a time on."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from click.testing import CliRunner

from k2.cli.main import cli
from k2.errors import TapeError
from k2.records import WIRE_REFERENCE
from k2.tapes.reference import ReferenceFile, Rules, day_us, read
from tests import data
from tests.e2e.harness import Stack

INFO = data.SHARED / "binance" / "exchangeInfo_20211011.json.gz"
COMPANIES = data.SHARED / "asx" / "reference" / "company_info.csv"
_NOW = 1_700_000_000_000_000
RULES = Rules("AUD", ZoneInfo("Australia/Sydney"), _NOW)


def of(path: Path, exchange: str = "X", asset_class: str = "crypto") -> ReferenceFile:
    return read(path, exchange, asset_class, RULES, _NOW)


def rows(file: ReferenceFile) -> dict[str, dict[str, Any]]:
    found = file.batch.set_column(
        file.batch.schema.get_field_index("timestamp"),
        "timestamp",
        file.batch["timestamp"].cast("int64"),
    )
    return {
        row["symbol"]: {**row, "vendor_data": dict(row["vendor_data"])} for row in found.to_pylist()
    }


def test_every_symbol_of_the_recorded_exchange_info_is_a_row() -> None:
    data.require(INFO)
    answer = json.loads(gzip.decompress(INFO.read_bytes()).splitlines()[0])
    file = of(INFO, "binance")
    found = rows(file)
    assert (file.layout, file.bad) == ("binance-exchange-info", [])
    assert file.batch.schema.equals(WIRE_REFERENCE)
    assert len(found) == len(answer["symbols"]) > 1_000
    for symbol in answer["symbols"]:
        row = found[symbol["symbol"]]
        filters = {one["filterType"]: one for one in symbol["filters"]}
        assert (row["base_asset"], row["quote_asset"]) == (
            symbol["baseAsset"],
            symbol["quoteAsset"],
        )
        assert row["tick_size"] == filters["PRICE_FILTER"]["tickSize"]
        assert row["lot_size"] == filters["LOT_SIZE"]["stepSize"]
        assert row["status"] == symbol["status"]
        assert row["timestamp"] == answer["serverTime"] * 1_000


def test_a_table_of_companies_holds_from_its_dates_in_its_zone() -> None:
    data.require(COMPANIES)
    file = of(COMPANIES, "asx", "equities")
    bhp = rows(file)["BHP"]
    assert file.layout == "csv"
    # 7 May 2008 began in Sydney at 14:00 UTC of the day before.
    assert bhp["timestamp"] == day_us("2008-05-06T14:00:00Z", RULES.zone)
    assert (bhp["name"], bhp["isin"], bhp["currency"]) == (
        "BHP BILLITON LTD",
        "AU000000BHP4",
        "AUD",
    )
    assert bhp["vendor_data"] == {"company_id": "7078", "end_date": "03/31/2014"}
    assert bhp["tick_size"] == "0"


def test_the_answers_of_coinbase_and_kraken_are_known_by_their_shape(tmp_path: Path) -> None:
    products, pairs = tmp_path / "products", tmp_path / "pairs"
    products.write_text(
        json.dumps(
            [
                {
                    "id": "BTC-USD",
                    "base_currency": "BTC",
                    "quote_currency": "USD",
                    "quote_increment": "0.01",
                    "base_increment": "0.00000001",
                    "min_market_funds": "1",
                    "status": "online",
                }
            ]
        )
    )
    pairs.write_text(
        json.dumps(
            {
                "error": [],
                "result": {
                    "XXBTZUSD": {
                        "altname": "XBTUSD",
                        "wsname": "XBT/USD",
                        "pair_decimals": 1,
                        "lot_decimals": 8,
                        "tick_size": "0.1",
                        "costmin": "0.5",
                        "status": "online",
                    }
                },
            }
        )
    )
    for path, layout, tick, least in (
        (products, "coinbase-products", "0.01", "1"),
        (pairs, "kraken-asset-pairs", "0.1", "0.5"),
    ):
        file = of(path)
        row = rows(file)["BTCUSD"]
        assert file.layout == layout
        assert (row["tick_size"], row["lot_size"]) == (tick, "0.00000001")
        assert (row["min_notional"], row["timestamp"]) == (least, _NOW)


def test_an_entry_that_is_none_is_told_and_the_others_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(
        "symbol,tick_size,valid_from\nGOOD,0.01,2024-03-01\nBAD,x,2024-03-01\nBTC-USD,1,\n"
        "LATE,1,31/12/2024\nSHORT\nNEG,-1,\n"
    )
    file = of(path)
    assert list(rows(file)) == ["GOOD"]
    assert [row.row for row in file.bad] == [3, 4, 5, 6, 7]
    assert "least 0" in file.bad[-1].detail


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("<html>", "no column symbol"),
        ('{"symbols": [', "no whole JSON"),
        ('{"code": -1, "msg": "x"}', "neither Binance"),
        ("[]", "no instrument"),
        ("symbol\n", "no instrument"),
    ],
)
def test_what_is_no_reference_data_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(TapeError, match=said):
        of(path)
    with pytest.raises(TapeError, match="no such file"):
        of(tmp_path / "none")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--exchange", "binance", "--asset-class", "futures"), "do not go together"),
        (("--exchange", "x", "--asset-class", "crypto", "--symbol", "A"), "--symbol is of tapes"),
        (("--exchange", "x", "--asset-class", "crypto", "--valid-from", "soon"), "is no time"),
    ],
)
def test_the_command_names_what_does_not_go(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    path = tmp_path / "file.csv"
    path.write_text("symbol\nA\n")
    command = ["load", "reference", str(path), "--data-dir", str(tmp_path), *arguments]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code != 0
    assert said in result.output


@pytest.mark.timeout(240)
async def test_loaded_twice_it_is_there_once_and_trades_find_what_held_then(tmp_path: Path) -> None:
    data.require(INFO, data.BTC_0808)
    later = tmp_path / "later.csv"
    later.write_text(
        "symbol,base_asset,quote_asset,tick_size,valid_from\n"
        "BTCUSDT,BTC,USDT,0.05,2024-08-08T23:59:30Z\n"
    )
    async with Stack(tmp_path) as stack:
        for path in (INFO, later, INFO):
            report = await stack.command(
                *("load", "reference", str(path), "--asset-class", "crypto"),
                *("--exchange", "binance", "--data-dir", str(tmp_path / "data"), "--json"),
            )
            assert report["bad"] == 0
        assert (report["stored"], report["duplicates"]) == (0, report["sent"])
        await stack.start_exchange("serve", "--capture", str(data.BTC_0808), "--speed", "max")
        await stack.start_worker(K2_BINANCE_STREAMS="trade", K2_REFERENCE="true")
        await stack.until("the replay", lambda s: s["source"]["trades"] > 5_000 and s["drained"])
        found = await stack.sql(
            "select r.tick_size::varchar tick, r.base_asset base, "
            "bool_and((t.timestamp >= timestamptz '2024-08-08 23:59:30+00') = "
            "(r.tick_size < 0.1 and r.tick_size > 0.01)) apart "
            "from trades t asof join reference_data r on t.symbol = r.symbol "
            "and t.exchange = r.exchange and t.timestamp >= r.timestamp group by 1, 2 order by 1"
        )
        assert found == [
            {"tick": "0.0100000000", "base": "BTC", "apart": True},
            {"tick": "0.0500000000", "base": "BTC", "apart": True},
        ]
        (row,) = await stack.sql("select count(*) n from reference_data where symbol = 'BTCUSDT'")
        assert row == {"n": 2}
        await enriched_alike(stack)
        status, symbols = await stack.get("/v1/symbols", fields=_FIELDS)
        (seen,) = symbols["data"]
        assert (status, seen.pop("tick_size"), seen.pop("currency")) == (
            200,
            "0.05",
            "USDT",
        )
        assert seen == {"symbol": "BTCUSDT", "base_asset": "BTC", "quote_asset": "USDT", "tier": 1}
        status, refused = await stack.get("/v1/symbols", fields="symbol,price")
        assert (status, refused["detail"]["parameter"]) == (422, "fields")
        # The log thrown away, the lake kept: the same answers.
        assert await stack.stop_worker() == 0
        shutil.rmtree(tmp_path / "data" / "log")
        await stack.start_worker(K2_BINANCE_ENABLED="false")
        await enriched_alike(stack)


_FIELDS = "symbol,base_asset,quote_asset,currency,tick_size,tier"


async def enriched_alike(stack: Stack) -> None:
    """Every trade of an answer has the tick size that held when it happened."""
    change = "2024-08-08T23:59:30Z"
    for period, tick in (({"end_time": change}, "0.01"), ({"start_time": change}, "0.05")):
        status, found = await stack.get(
            "/v1/trades", symbol="BTCUSDT", limit="500", fields=f"price,{_FIELDS}", **period
        )
        assert status == 200, found
        facts = {"symbol": "BTCUSDT", "base_asset": "BTC", "quote_asset": "USDT", "tier": 1}
        assert len(found["data"]) > 10
        for row in found["data"]:
            assert row.pop("price")
            assert row == {**facts, "currency": "USDT", "tick_size": tick}
        assert found["meta"]["as_of"]["instruments"]["statements"] > 1_000
