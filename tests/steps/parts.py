"""Records, settings, codecs and a lake for tests of the steps: everything real, in a directory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from faust.types import TP

from k2.codec.registry import FileRegistry
from k2.codecs import Codecs
from k2.lake.tables import TABLES
from k2.lakehouse import Lakehouse
from k2.records import build, vendor_map
from k2.settings import Settings, load_settings
from k2.steps.publish import SESSION_HEADER
from k2.testing.clock import ManualClock
from k2.topics import BINANCE_QUOTES, BINANCE_TRADES, MARKET_TOPICS, MarketTopic, parse
from k2.transport.batch import OutBatch

EPOCH = "6f2c3f5e-8a43-4f63-9d0a-8f1f0a1c2b3d"
OTHER_EPOCH = "11111111-2222-4333-8444-555555555555"
TRADES, QUOTES = BINANCE_TRADES, BINANCE_QUOTES

Record = tuple[str, int]


def settings_in(path: Path, monkeypatch: pytest.MonkeyPatch, **variables: object) -> Settings:
    """Settings with their data in `path`; `variables` without the prefix `K2_`."""
    monkeypatch.setenv("K2_DATA_DIR", str(path))
    for name, value in variables.items():
        monkeypatch.setenv(f"K2_{name}", str(value))
    return load_settings()


def codecs_in(path: Path) -> Codecs:
    return Codecs.open(FileRegistry(path), MARKET_TOPICS)


def trade_rows(records: Sequence[Record], at_us: int, price: str = "61837.63000000") -> pa.Table:
    """Wire trades of (symbol, id), in that order, a millisecond apart by their ids."""
    times = np.array([at_us + ident * 1_000 for _, ident in records], np.int64)
    return build(
        "trades",
        len(records),
        {
            "message_id": [
                f"BINANCE:{t // 1_000}:{s}:{i}" for (s, i), t in zip(records, times, strict=True)
            ],
            "trade_id": [str(ident) for _, ident in records],
            "symbol": [symbol for symbol, _ in records],
            "exchange": "BINANCE",
            "asset_class": "crypto",
            "timestamp": times,
            "receive_timestamp": times,
            "ingestion_timestamp": times,
            "price": price,
            "quantity": "0.02000000",
            "currency": "USDT",
            "side": "BUY",
            "source_sequence": [ident for _, ident in records],
            "vendor_data": vendor_map(len(records), {"M": "true"}),
        },
    )


def quote_rows(records: Sequence[Record], at_us: int) -> pa.Table:
    """Wire quotes of (symbol, update id)."""
    times = np.array([at_us + ident * 1_000 for _, ident in records], np.int64)
    return build(
        "quotes",
        len(records),
        {
            "message_id": [
                f"BINANCE:{t // 1_000}:{s}:{i}" for (s, i), t in zip(records, times, strict=True)
            ],
            "quote_id": [str(ident) for _, ident in records],
            "symbol": [symbol for symbol, _ in records],
            "exchange": "BINANCE",
            "asset_class": "crypto",
            "timestamp": times,
            "receive_timestamp": times,
            "ingestion_timestamp": times,
            **dict.fromkeys(("bid_price", "ask_price"), "61837.63000000"),
            **dict.fromkeys(("bid_quantity", "ask_quantity"), "1"),
            "currency": "USDT",
        },
    )


def out_of(
    codecs: Codecs,
    records: Sequence[Record],
    *,
    topic: MarketTopic = TRADES,
    partition: int = 0,
    at_us: int | None = None,
    session: bytes = b"session",
) -> OutBatch:
    """(symbol, id) records as a source writes them to a log of record."""
    rows = trade_rows if topic.data_type == "trades" else quote_rows
    at_us = ManualClock().now_us() if at_us is None else at_us
    values = codecs.of(topic.log).encode(rows(records, at_us))
    keys = [symbol.encode() for symbol, _ in records]
    return OutBatch(topic.log, partition, list(values), keys, None, ((SESSION_HEADER, session),))


@dataclass
class Token:
    """An event: acknowledged once."""

    name: object = None
    acks: int = 0

    def ack(self) -> None:
        self.acks += 1


@dataclass
class Tokens:
    """Tokens of a series of events, in order."""

    made: list[Token] = field(default_factory=list)

    def new(self, name: object = None) -> Token:
        self.made.append(Token(name))
        return self.made[-1]

    @property
    def acked(self) -> list[int]:
        return [token.acks for token in self.made]


def epoch_of(_topic: str) -> str:
    return EPOCH


def tp(name: str, partition: int = 0) -> TP:
    return TP(name, partition)


def stored(lake: Lakehouse, table: str = "trades") -> list[dict[str, Any]]:
    """Rows of a table as of now, by place."""
    loaded = lake.catalog.load_table(TABLES[table].identifier)
    rows = loaded.scan().to_arrow()
    keys = [("log_epoch", "ascending"), ("log_topic", "ascending"), ("log_partition", "ascending")]
    return rows.sort_by([*keys, ("platform_sequence", "ascending")]).to_pylist()


def ids_stored(lake: Lakehouse, table: str = "trades") -> list[Record]:
    """(symbol, id) of every stored row, by place."""
    name = "trade_id" if table == "trades" else "quote_id"
    return [(row["symbol"], int(row[name])) for row in stored(lake, table)]


def dead_letters(codecs: Codecs, values: Iterable[bytes | None]) -> list[dict[str, Any]]:
    return codecs.of(TRADES.dlq).decode(list(values)).batch.to_pylist()


def market_of(topic: str) -> MarketTopic:
    return parse(topic)[0]
