"""Publishing: every record once, in order, where every Kafka client looks for its key."""

from __future__ import annotations

import asyncio

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from k2.codecs import Codecs
from k2.errors import LogError
from k2.steps.publish import (
    SESSION_HEADER,
    Partitioner,
    Publisher,
    in_batches,
    partition_of,
)
from k2.testing.clock import ManualClock, turns
from k2.testing.log import MemoryLog
from tests.steps.parts import TRADES, Record, trade_rows

#: What `Utils.toPositive(Utils.murmur2(key)) % 16` of Kafka 3.9.1's own clients gives.
KAFKA_PARTITIONS = {
    b"BTCUSDT": 2,
    b"ETHUSDT": 13,
    b"PEPEUSDT": 7,
    b"1000SATSUSDT": 2,
    b"SOLUSDT": 9,
    b"BNBUSDT": 15,
    b"": 9,
}


def publisher(
    codecs: Codecs, log: MemoryLog, clock: ManualClock, max_bytes: int = 500_000
) -> Publisher:
    return Publisher(TRADES, log, codecs.of(TRADES.log), Partitioner(16), clock, max_bytes)


def ids_by_partition(codecs: Codecs, log: MemoryLog) -> dict[int, list[Record]]:
    found = {}
    for partition in log.partitions(TRADES.log):
        rows = codecs.of(TRADES.log).decode(log.values(TRADES.log, partition)).batch
        ids = map(int, rows["trade_id"].to_pylist())
        found[partition] = list(zip(rows["symbol"].to_pylist(), ids, strict=True))
    return found


@pytest.mark.parametrize("key", KAFKA_PARTITIONS)
def test_the_partitioner_is_kafkas_default(key: bytes) -> None:
    assert partition_of(key, 16) == KAFKA_PARTITIONS[key]


@given(st.lists(st.sampled_from(["BTCUSDT", "ETHUSDT", "PEPEUSDT", "SOLUSDT"]), max_size=40))
def test_rows_are_split_by_partition_in_their_order(symbols: list[str]) -> None:
    made = Partitioner(16)
    split = made.rows(pa.array(symbols, pa.string()))
    assert sorted(row for _, rows in split for row in rows.tolist()) == list(range(len(symbols)))
    for partition, rows in split:
        assert rows.tolist() == sorted(rows.tolist())
        assert {made.of(symbols[row]) for row in rows.tolist()} == {partition}
    assert len({partition for partition, _ in split}) == len(split)


@given(st.lists(st.integers(0, 400), max_size=30), st.integers(100, 900))
def test_batches_hold_every_value_once_below_the_limit(sizes: list[int], limit: int) -> None:
    values = [bytes([index % 256]) * size for index, size in enumerate(sizes)]
    keys = [b"%d" % index for index in range(len(values))]
    headers = (("h", b"x"),)
    batches = in_batches("t", 4, values, keys, headers, limit)
    assert [value for batch in batches for value in batch.values] == values
    assert [key for batch in batches for key in batch.keys] == keys
    assert {(b.topic, b.partition, b.headers) for b in batches} == {("t", 4, headers)}
    for batch in batches:
        size = sum(
            len(v or b"") + len(k or b"") for v, k in zip(batch.values, batch.keys, strict=True)
        )
        assert size <= limit or len(batch.values) == 1
        assert batch.values or not values


async def test_a_symbol_has_one_partition_and_keeps_its_order(
    codecs: Codecs, log: MemoryLog, clock: ManualClock
) -> None:
    made = publisher(codecs, log, clock)
    records = [(s, i) for i in range(1, 40) for s in ("BTCUSDT", "ETHUSDT", "PEPEUSDT")]
    for at in range(0, len(records), 10):
        rows = trade_rows(records[at : at + 10], clock.now_us())
        await asyncio.gather(*made.publish(rows, "session-1"))
    found = ids_by_partition(codecs, log)
    assert set(found) == {KAFKA_PARTITIONS[s] for s in (b"BTCUSDT", b"ETHUSDT", b"PEPEUSDT")}
    for partition, rows in found.items():
        assert rows == [r for r in records if KAFKA_PARTITIONS[r[0].encode()] == partition]
    assert all(batch.headers == ((SESSION_HEADER, b"session-1"),) for batch in log.sent)
    keys = [key for batch in log.sent for key in batch.keys]
    assert set(keys) == {b"BTCUSDT", b"ETHUSDT", b"PEPEUSDT"}


async def test_a_large_batch_is_split_and_every_part_names_the_session(
    codecs: Codecs, log: MemoryLog, clock: ManualClock
) -> None:
    made = publisher(codecs, log, clock, max_bytes=2_000)
    records = [("BTCUSDT", i) for i in range(50)]
    futures = made.publish(trade_rows(records, clock.now_us()), "s")
    await asyncio.gather(*futures)
    assert len(log.sent) == len(futures) > 3
    assert ids_by_partition(codecs, log) == {2: records}
    assert {batch.headers for batch in log.sent} == {((SESSION_HEADER, b"s"),)}


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_records_count_as_produced_once_the_log_has_answered(
    codecs: Codecs, log: MemoryLog, clock: ManualClock
) -> None:
    labels = {
        "exchange": "BINANCE",
        "asset_class": "crypto",
        "data_type": "trades",
        "topic": TRADES.log,
    }
    before = counted("k2_kafka_messages_produced_total", **labels)
    log.hold()
    futures = publisher(codecs, log, clock).publish(
        trade_rows([("BTCUSDT", i) for i in range(7)], clock.now_us()), "s"
    )
    assert counted("k2_kafka_messages_produced_total", **labels) == before
    log.release()
    await asyncio.gather(*futures)
    assert counted("k2_kafka_messages_produced_total", **labels) == before + 7


async def test_what_the_log_refuses_fails_its_future_and_is_counted(
    codecs: Codecs, log: MemoryLog, clock: ManualClock
) -> None:
    labels = {"topic": TRADES.log, "error_type": "LogError"}
    before = counted("k2_kafka_produce_errors_total", **labels)
    log.refuse(LogError("the disk is full"))
    (future,) = publisher(codecs, log, clock).publish(
        trade_rows([("BTCUSDT", 1)], clock.now_us()), "s"
    )
    with pytest.raises(LogError, match="disk is full"):
        await future
    await turns()
    assert counted("k2_kafka_produce_errors_total", **labels) == before + 1
    assert log.partitions(TRADES.log) == []
