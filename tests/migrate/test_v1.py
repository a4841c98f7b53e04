"""V1 topics into V2: the same trades, each once, also while V1 goes on being written."""

from __future__ import annotations

import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import faust
import numpy as np
import pytest

from k2.codec.registry import FileRegistry
from k2.codec.schemas import compact, schema_dir
from k2.codec.wire import header
from k2.migrate.v1 import Target, V1Reader, digest_of
from k2.records import WIRE
from k2.settings import load_settings
from k2.transport.admin import TopicSpec
from k2.transport.batch import LogBatch, OutBatch
from k2.transport.registry import registry
from tests.e2e.harness import Stack

_AT_MS = 1_394_409_600_123
SOURCE = "market.equities.trades.asx.v1"


def schema(kind: str) -> str:
    return compact(json.loads((schema_dir() / f"{kind}_v1.avsc").read_text()))


def trade(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "symbol": "BHP",
        "company_id": 7078,
        "exchange": "ASX",
        "exchange_timestamp": _AT_MS + number,
        "price": Decimal("37.12") + number,
        "volume": 100 + number,
        "qualifiers": 3 if number == 1 else 0,
        "venue": "X" if number == 1 else "",
        "buyer_id": None,
        "ingestion_timestamp": _AT_MS + number + 5,
        "sequence_number": None,
        **changes,
    }


def encoded(kind: str, record: dict[str, Any], schema_id: int = 1) -> bytes:
    body = io.BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(json.loads(schema(kind))), record)
    return header(schema_id) + body.getvalue()


def batch(*values: bytes | None) -> LogBatch:
    count = len(values)
    offsets = np.arange(count, dtype=np.int64)
    return LogBatch(
        SOURCE, 0, offsets, offsets, [b"k"] * count, list(values), {}, 0, count - 1, count
    )


def reader(kind: str = "trade") -> V1Reader:
    return V1Reader(lambda _: schema(kind), Target(f"{kind}s", "ASX", "equities", "AUD"))


def test_a_trade_is_the_same_trade_in_other_words() -> None:
    digest = digest_of("epoch", SOURCE, 0)
    values = [encoded("trade", trade(0)), encoded("trade", trade(1, sequence_number=9))]
    made, bad = reader().read(batch(*values), digest, 7)
    assert bad == []
    assert made is not None
    assert made.schema.equals(WIRE["trades"])
    plain, marked = made.to_pylist()
    assert (plain["trade_id"], plain["price"], plain["quantity"]) == (
        f"{digest}-0",
        "37.120000",
        "100",
    )
    assert (plain["symbol"], plain["currency"], plain["side"]) == ("BHP", "AUD", "UNKNOWN")
    assert made["timestamp"].cast("int64").to_pylist() == [_AT_MS * 1_000, (_AT_MS + 1) * 1_000]
    assert plain["trade_conditions"] == []
    assert marked["trade_conditions"] == ["3", "OFF_MARKET"]
    assert marked["source_sequence"] == 9
    assert dict(marked["vendor_data"]) == {
        "migrated_from": SOURCE,
        "company_id": "7078",
        "qualifiers": "3",
        "venue": "X",
    }


def test_a_quote_likewise() -> None:
    record = {
        **{k: trade(0)[k] for k in ("symbol", "company_id", "exchange", "exchange_timestamp")},
        "bid_price": Decimal("1.5"),
        "bid_volume": 10,
        "ask_price": Decimal("1.6"),
        "ask_volume": 20,
        "ingestion_timestamp": _AT_MS,
        "sequence_number": None,
    }
    made, bad = reader("quote").read(batch(encoded("quote", record)), "0" * 16, 7)
    assert bad == []
    assert made is not None
    (row,) = made.to_pylist()
    prices = (row["bid_price"], row["bid_quantity"], row["ask_price"], row["ask_quantity"])
    assert prices == ("1.500000", "10", "1.600000", "20")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"{}", "Confluent header"),
        (b"", "Confluent header"),
        (header(1) + b"\x06BH", ""),
        (encoded("trade", trade(0))[:-4], ""),
    ],
)
def test_what_is_no_v1_record_is_told_and_the_others_come(value: bytes, said: str) -> None:
    good = encoded("trade", trade(0))
    made, bad = reader().read(batch(good, value, None, good), "0" * 16, 7)
    assert made is not None
    assert made["trade_id"].to_pylist() == [f"{'0' * 16}-0", f"{'0' * 16}-3"]
    assert [row.offset for row in bad] == [1]
    assert said in bad[0].detail


def test_nothing_but_bad_ones_is_no_batch() -> None:
    assert reader().read(batch(b"x"), "0" * 16, 7)[0] is None


async def write(data_dir: Path, records: list[dict[str, Any]]) -> None:
    """V1 records into a topic of the embedded log with a number of partitions of its own."""
    ident = FileRegistry(data_dir / "registry").register(f"{SOURCE}-value", schema("trade"))
    app = faust.App("v1", broker=f"local://{data_dir / 'log'}", web_enabled=False)
    registry(app).kafka = load_settings().kafka
    await app.transport.ensure_topics([TopicSpec(SOURCE, 2)])
    await app.maybe_start_producer()
    for partition in range(2):
        values = [encoded("trade", record, ident) for record in records[partition::2]]
        await app.producer.send_batch(OutBatch(SOURCE, partition, values, [b"BHP"] * len(values)))
    await app.producer.stop()
    await app.transport.close()


async def test_a_topic_moves_in_parts_and_each_trade_is_there_once(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    command = ("migrate", "v1", "trades", SOURCE, "--data-dir", str(data_dir), "--json")
    await write(data_dir, [trade(number) for number in range(1_000)])
    async with Stack(tmp_path) as stack:
        looked = await stack.command(*command, "--dry-run")
        assert (looked["records"], looked["sent"], looked["bad"]) == (1_000, 1_000, 0)
        first = await stack.command(*command)
        assert (first["sent"], first["before"], first["stored"]) == (1_000, 0, 1_000)
        # Its writers went on meanwhile; and what is remembered of the first run is lost.
        await write(data_dir, [trade(number) for number in range(1_000, 1_010)])
        second = await stack.command(*command)
        assert (second["sent"], second["before"], second["stored"]) == (10, 1_000, 10)
        for journal in (data_dir / "loads").glob("v1-*"):
            journal.unlink()
        again = await stack.command(*command)
        assert (again["sent"], again["stored"], again["duplicates"]) == (1_010, 0, 1_010)
        await stack.start_worker(K2_BINANCE_ENABLED="false")
        (row,) = await stack.sql(
            "select count(*) n, count(distinct trade_id) ids, sum(quantity)::varchar volume, "
            "min(exchange) x from trades"
        )
        volume = sum(100 + number for number in range(1_010))
        assert row == {"n": 1_010, "ids": 1_010, "volume": f"{volume}.0000000000", "x": "ASX"}
