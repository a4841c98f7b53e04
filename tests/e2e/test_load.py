"""`k2 load` by hand: recorded tapes into a data directory, twice, with the oracle's candles."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import shutil
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from k2.cli.demo.client import free_port
from tests import data
from tests.e2e.harness import catalog, newest_candles

ASX = data.SHARED / "asx"
_HOURS_SYDNEY = 11  # that week


async def load(data_dir: Path, *arguments: str, expect: int = 0) -> dict[str, Any]:
    """The report of one `k2 load --json`."""
    command = [sys.executable, "-m", "k2.cli", "load", *arguments, "--json"]
    command += ["--asset-class", "equities", "--exchange", "ASX", "--data-dir", str(data_dir)]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "K2_API_PORT": str(free_port())},
    )
    out, err = await process.communicate()
    assert process.returncode == expect, f"{out.decode()}\n{err.decode()}"
    return json.loads(out) if out else {"error": err.decode()}


def rows_of(data_dir: Path, table: str) -> Any:
    return catalog(data_dir).load_table(f"market_data.{table}").scan().to_arrow()


async def test_a_tape_is_loaded_once_however_often_and_gives_the_oracles_candles(
    tmp_path: Path,
) -> None:
    files = [str(ASX / "trades" / f"{company}.csv.gz") for company in (7078, 3153, 7181)]
    data.require(*map(Path, files))
    report = await load(tmp_path, "trades", *files)
    assert (report["rows"], report["bad"], report["stored"]) == (91_874, 0, 91_874)
    again = await load(tmp_path, "trades", *files)
    assert (again["rows"], again["stored"]) == (0, 0)
    # Without the journal, and under another name, the rows tell.
    for entry in (tmp_path / "loads").iterdir():
        entry.unlink()
    copy = tmp_path / "copy.csv.gz"
    await asyncio.to_thread(shutil.copy, files[0], copy)
    more = await load(tmp_path, "trades", str(copy), "--symbol", "BHP")
    assert (more["sent"], more["stored"], more["duplicates"]) == (91_631, 0, 91_631)
    table = rows_of(tmp_path, "trades")
    assert table.num_rows == 91_874
    oracle = json.loads((ASX / "oracle_bhp_daily.json").read_text())
    assert _candles(table) == oracle
    # Those the lake keeps leave out what was only reported to the market.
    kept = newest_candles(tmp_path, "BHP", "1m")
    assert _by_local_day(kept) == [
        {name: day[name] for name in _KEPT} for day in oracle if day["trades"] == "on_market"
    ]


_KEPT = ("date", "open", "high", "low", "close", "volume", "trade_count")


def _by_local_day(candles: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Minutes in order as days of Sydney."""
    days: dict[str, list[dict[str, Any]]] = {}
    for candle in candles:
        local = candle["window_start"] + dt.timedelta(hours=_HOURS_SYDNEY)
        days.setdefault(local.strftime("%m/%d/%Y"), []).append(candle)
    return [
        {
            "date": date,
            "open": _text(minutes[0]["open"]),
            "high": _text(max(one["high"] for one in minutes)),
            "low": _text(min(one["low"] for one in minutes)),
            "close": _text(minutes[-1]["close"]),
            "volume": int(sum(one["volume"] for one in minutes)),
            "trade_count": sum(one["trade_count"] for one in minutes),
        }
        for date, minutes in sorted(days.items())
    ]


def _candles(table: Any) -> list[dict[str, Any]]:
    """Daily candles of BHP by local date, of all trades and of those made on the market."""
    days: dict[tuple[str, str], list[dict[str, Any]]] = {}
    rows = [row for row in table.to_pylist() if row["symbol"] == "BHP"]
    for row in sorted(rows, key=lambda r: (r["timestamp"], r["platform_sequence"])):
        local = row["timestamp"] + dt.timedelta(hours=_HOURS_SYDNEY)
        date = local.strftime("%m/%d/%Y")
        days.setdefault((date, "all"), []).append(row)
        if "OFF_MARKET" not in row["trade_conditions"]:
            days.setdefault((date, "on_market"), []).append(row)
    return [_candle(*key, rows) for key, rows in sorted(days.items())]


def _candle(date: str, which: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    prices = [row["price"] for row in rows]
    volume = sum(row["quantity"] for row in rows)
    notional = sum(row["price"] * row["quantity"] for row in rows)
    return {
        "date": date,
        "trades": which,
        "open": _text(prices[0]),
        "high": _text(max(prices)),
        "low": _text(min(prices)),
        "close": _text(prices[-1]),
        "volume": int(volume),
        "vwap": str((notional / volume).quantize(Decimal("0.00000001"))),
        "trade_count": len(rows),
    }


def _text(price: Decimal) -> str:
    text = format(price.normalize(), "f")
    return text if "." in text else f"{text}.0"


async def test_bad_rows_are_dead_letters_and_the_command_says_so(tmp_path: Path) -> None:
    tape = tmp_path / "7078.csv"
    good = "03/10/2014,13:50:38.849,1.11,3667,0,,"
    tape.write_text(f"{good}\n03/10/2014,13:50:38.849,x,1,0,,\nnonsense\n{good}")
    report = await load(tmp_path / "d", "trades", str(tape), "--symbol", "BHP", expect=1)
    assert (report["sent"], report["bad"], report["stored"]) == (2, 2, 2)
    assert [row[:2] for row in report["files"][0]["bad_rows"]] == [
        [2, "BAD_DECIMAL"],
        [3, "BAD_FIELDS"],
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trades", "FILE", "--layout", "nyse"), "layout 'nyse' is unknown; allowed: k2, asx-tape"),
        (("trades", "FILE", "--timezone", "Sydney", "--symbol", "X"), "time zone 'Sydney'"),
        (("trades", "."), "is a directory"),
        (("trades", "HALF"), "ends in the middle of its gzip stream"),
    ],
)
async def test_what_cannot_be_loaded_is_said_and_nothing_is(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    tape, half = tmp_path / "7078.csv", tmp_path / "half.csv.gz"
    tape.write_text("03/10/2014,13:50:38.849,1.11,3667,0,,\n")
    source = ASX / "trades" / "7078.csv.gz"
    data.require(source)
    half.write_bytes(source.read_bytes()[:100_000])
    places = {"FILE": str(tape), "HALF": str(half), ".": str(tmp_path)}
    # A good file beside the bad one is not loaded either.
    report = await load(
        tmp_path / "d", *(places.get(word, word) for word in arguments), str(tape), expect=1
    )
    assert words in report["error"]
    assert not (tmp_path / "d" / "log").exists()
