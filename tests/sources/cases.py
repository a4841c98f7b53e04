"""Recorded frames of every exchange, for the behaviour suite that all of them pass."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from k2.setting_feeds import Binance, Coinbase, Feed, Kraken
from k2.sources.contract import Exchange
from k2.sources.exchanges import EXCHANGES
from tests import data

COINBASE = data.SHARED / "coinbase" / "coinbase_pro_20210417.gz"
KRAKEN_V1 = data.SHARED / "kraken" / "kraken_v1_trade_20210417.gz"
KRAKEN_REST = data.SHARED / "kraken" / "kraken_rest_trades_xbtusdt_20251110.json.gz"
_LINE = re.compile(rb"^(?:[0-9.]+):? ([\[{].*)$")


@dataclass(frozen=True)
class Case:
    """One exchange (in one of its protocols) and what its recorded frames must become."""

    exchange: Exchange
    settings: Feed
    frames: Callable[[], list[bytes]]
    trades: int
    quotes: int
    refusals: bytes
    numbered: bool = True


def recorded(path: Path) -> list[bytes]:
    """Frames of a capture, as they came."""
    data.require(path)
    with gzip.open(path) as file:
        found = [_LINE.match(line.rstrip()) for line in file]
    return [match[1] for match in found if match]


def _binance() -> list[bytes]:
    # One line of the capture is a REST answer.
    return [frame for frame in recorded(data.BTC_0808)[:5_000] if frame.startswith(b'{"stream"')]


def kraken_rest() -> list[Any]:
    """The 1,000 trades of the REST answer, prices and volumes as text."""
    data.require(KRAKEN_REST)
    with gzip.open(KRAKEN_REST) as file:
        return json.load(file, parse_float=str)["result"]["XBTUSDT"]


def kraken_v2_frames() -> list[bytes]:
    """The REST trades as v2 sends them: numbers with the digits they have."""
    sides, kinds = {"b": "buy", "s": "sell"}, {"l": "limit", "m": "market"}
    frames = []
    for price, volume, time, side, kind, _, ident in kraken_rest():
        seconds, fraction = str(time).split(".")
        stamp = _iso(int(seconds)) + f".{fraction[:6].ljust(6, '0')}Z"
        frames.append(
            f'{{"channel":"trade","type":"update","data":[{{"symbol":"BTC/USDT",'
            f'"side":"{sides[side]}","price":{price},"qty":{volume},"ord_type":"{kinds[kind]}",'
            f'"trade_id":{ident},"timestamp":"{stamp}"}}]}}'.encode()
        )
    ticker = (
        b'{"channel":"ticker","type":"update","data":[{"symbol":"BTC/USDT","bid":105433.6,'
        b'"bid_qty":0.00027625,"ask":105433.7,"ask_qty":1.5,"last":105433.6,"volume":12.5}]}'
    )
    return [*frames, ticker]


def _iso(seconds: int) -> str:
    import datetime as dt

    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")


PRODUCTS = (
    "SKL-USD", "SKL-BTC", "BAND-GBP", "NMR-EUR", "BAND-BTC",
    "YFI-BTC", "DASH-BTC", "NU-GBP", "CRV-EUR", "SKL-GBP",
)  # fmt: skip
V1_PAIRS = (
    "WAVES/EUR", "XMR/USD", "KSM/XBT", "GRT/ETH", "SC/EUR",
    "ETH/CHF", "OCEAN/XBT", "OMG/USD", "XBT/CHF", "ADA/XBT",
)  # fmt: skip


def _settings(kind: type[Feed], **values: Any) -> Feed:
    return kind(_env_file=None, **values)  # type: ignore[call-arg]


CASES = {
    "binance": Case(
        EXCHANGES["binance"],
        _settings(Binance, symbols=("BTCUSDT",)),
        _binance,
        trades=0,  # counted against the capture by its own tests
        quotes=0,
        refusals=b'{"error":{"code":2,"msg":"Invalid request"},"id":1}',
    ),
    "coinbase": Case(
        EXCHANGES["coinbase"],
        _settings(Coinbase, symbols=PRODUCTS),
        lambda: recorded(COINBASE),
        trades=107,
        quotes=107,
        refusals=b'{"type":"error","message":"Failed to subscribe","reason":"X-Y is no product"}',
    ),
    "kraken-v2": Case(
        EXCHANGES["kraken"],
        _settings(Kraken, symbols=("BTC/USDT",)),
        kraken_v2_frames,
        trades=1_000,
        quotes=1,
        refusals=b'{"error":"Currency pair not supported X/Y","method":"subscribe",'
        b'"success":false}',
    ),
    "kraken-v1": Case(
        EXCHANGES["kraken"],
        _settings(Kraken, symbols=V1_PAIRS, protocol="v1"),
        lambda: recorded(KRAKEN_V1),
        trades=10,
        quotes=0,
        refusals=b'{"errorMessage":"Currency pair not in ISO 4217-A3 format","event":'
        b'"subscriptionStatus","status":"error"}',
        numbered=False,
    ),
}
