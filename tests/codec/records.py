"""Records for codec tests: recorded Binance frames and generated ones."""

from __future__ import annotations

import gzip
import io
import json
from functools import cache
from typing import Any

import fastavro
from hypothesis import strategies as st

from k2.codec.engines import _raw
from k2.codec.schemas import schema_text
from k2.codec.wire import header
from tests.data import BTC_0808, require

ASSET_CLASSES = ("crypto", "equities", "futures", "options")
SIDES = ("BUY", "SELL", "SELL_SHORT", "UNKNOWN")
LONGS = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(codec="utf-8"), max_size=80)
MAPS = st.dictionaries(TEXT, TEXT, max_size=70)


@cache
def parsed(kind: str) -> Any:
    """The kind's schema for fastavro, timestamps as integers."""
    return fastavro.parse_schema(_raw(json.loads(schema_text(kind))))


def reference_encode(kind: str, record: dict[str, Any], schema_id: int) -> bytes:
    body = io.BytesIO()
    fastavro.schemaless_writer(body, parsed(kind), record)
    return header(schema_id) + body.getvalue()


def frames(channel: str, limit: int) -> list[tuple[int, dict[str, Any]]]:
    """(receive time in µs, payload) of the first recorded frames of a channel."""
    require(BTC_0808)
    found = []
    with gzip.open(BTC_0808, "rt") as lines:
        for line in lines:
            if channel in line:
                received_ns, frame = line.split(" ", 1)
                found.append((int(received_ns) // 1_000, json.loads(frame)["data"]))
                if len(found) == limit:
                    break
    return found


def recorded_trades(limit: int) -> list[dict[str, Any]]:
    return [
        {
            "message_id": f"BINANCE:{data['T']}:{data['s']}:{data['t']}",
            "trade_id": str(data["t"]),
            "symbol": data["s"],
            "exchange": "BINANCE",
            "asset_class": "crypto",
            "timestamp": data["T"] * 1_000,
            "receive_timestamp": received_us,
            "ingestion_timestamp": received_us,
            "price": data["p"],
            "quantity": data["q"],
            "currency": "USDT",
            "side": "SELL" if data["m"] else "BUY",
            "trade_conditions": [],
            "source_sequence": None,
            "vendor_data": {
                "is_buyer_maker": str(data["m"]).lower(),
                "event_type": data["e"],
                "event_time": str(data["E"]),
                "trade_time": str(data["T"]),
                "base_asset": "BTC",
                "quote_asset": "USDT",
                "is_best_match": str(data["M"]).lower(),
            },
            "is_backfill": False,
        }
        for received_us, data in frames("@trade", limit)
    ]


def recorded_quotes(limit: int) -> list[dict[str, Any]]:
    return [
        {
            "message_id": f"BINANCE:{received_us // 1_000}:{data['s']}:{data['u']}",
            "quote_id": str(data["u"]),
            "symbol": data["s"],
            "exchange": "BINANCE",
            "asset_class": "crypto",
            "timestamp": received_us,
            "receive_timestamp": received_us,
            "ingestion_timestamp": received_us,
            "bid_price": data["b"],
            "bid_quantity": data["B"],
            "ask_price": data["a"],
            "ask_quantity": data["A"],
            "currency": "USDT",
            "source_sequence": None,
            "vendor_data": {"timestamp_source": "receive"},
            "is_backfill": False,
        }
        for received_us, data in frames("@bookTicker", limit)
    ]


TRADE = st.fixed_dictionaries(
    {
        "message_id": TEXT,
        "trade_id": TEXT,
        "symbol": TEXT,
        "exchange": TEXT,
        "asset_class": st.sampled_from(ASSET_CLASSES),
        "timestamp": LONGS,
        "receive_timestamp": LONGS,
        "ingestion_timestamp": LONGS,
        "price": TEXT,
        "quantity": TEXT,
        "currency": TEXT,
        "side": st.sampled_from(SIDES),
        "trade_conditions": st.lists(TEXT, max_size=5),
        "source_sequence": st.none() | LONGS,
        "vendor_data": st.none() | MAPS,
        "is_backfill": st.booleans(),
    }
)
QUOTE = st.fixed_dictionaries(
    {
        "message_id": TEXT,
        "quote_id": TEXT,
        "symbol": TEXT,
        "exchange": TEXT,
        "asset_class": st.sampled_from(ASSET_CLASSES),
        "timestamp": LONGS,
        "receive_timestamp": LONGS,
        "ingestion_timestamp": LONGS,
        "bid_price": TEXT,
        "bid_quantity": TEXT,
        "ask_price": TEXT,
        "ask_quantity": TEXT,
        "currency": TEXT,
        "source_sequence": st.none() | LONGS,
        "vendor_data": st.none() | MAPS,
        "is_backfill": st.booleans(),
    }
)
GAP = st.fixed_dictionaries(
    {
        "message_id": TEXT,
        "symbol": TEXT,
        "exchange": TEXT,
        "data_type": TEXT,
        "event": TEXT,
        "first_id": LONGS,
        "last_id": LONGS,
        "detected_at": LONGS,
        "how": TEXT,
        "log_offset": LONGS,
        "ordinal": st.integers(-(2**31), 2**31 - 1),
    }
)
DEAD_LETTER = st.fixed_dictionaries(
    {
        "reason": TEXT,
        "detail": TEXT,
        "topic": TEXT,
        "partition": st.integers(-(2**31), 2**31 - 1),
        "offset": LONGS,
        "log_epoch": TEXT,
        "timestamp": LONGS,
        "key": st.none() | st.binary(max_size=100),
        "value": st.none() | st.binary(max_size=100),
        "letter": st.none() | TEXT,
    }
)
AGG_TRADE = st.builds(
    lambda trade, first, last: {**trade, "first_trade_id": first, "last_trade_id": last},
    TRADE,
    LONGS,
    LONGS,
)
REFERENCE = st.fixed_dictionaries(
    {
        "message_id": TEXT,
        "reference_id": TEXT,
        "symbol": TEXT,
        "exchange": TEXT,
        "asset_class": st.sampled_from(ASSET_CLASSES),
        "timestamp": LONGS,
        "receive_timestamp": LONGS,
        "ingestion_timestamp": LONGS,
        **dict.fromkeys(("name", "isin", "status", "base_asset", "quote_asset", "currency"), TEXT),
        **dict.fromkeys(("tick_size", "lot_size", "min_notional"), TEXT),
        "vendor_data": st.none() | MAPS,
        "is_backfill": st.booleans(),
    }
)
RECORDS = {
    "trades": TRADE,
    "quotes": QUOTE,
    "agg_trades": AGG_TRADE,
    "reference_data": REFERENCE,
    "gaps": GAP,
    "dlq": DEAD_LETTER,
}
