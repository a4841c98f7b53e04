"""Replay: in order, at its pace, to every target; the same bytes however often."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from k2.cli.main import cli
from k2.client.rows import Rows
from k2.errors import ConfigError, LakeError
from k2.exchange.capture import read_capture
from k2.replay.pace import Pace, speed_of
from k2.replay.records import Record, merged, records
from k2.sources.binance import BinanceMapper
from k2.testing.clock import ManualClock
from k2.testing.kafka import KafkaServer
from tests.query.conftest import Platform
from tests.query.rows import T0_US, place, rows
from tests.web.api import Api
from tests.web.conftest import api

__all__ = ["api"]

PERIOD = ("--from", "2024-08-08T00:00:00Z", "--to", "2024-08-10T00:00:00Z")


async def series(records: list[Record]) -> AsyncIterator[Record]:
    for record in records:
        yield record


def record(ts_us: int, sequence: int = 0, kind: str = "trade") -> Record:
    return Record((ts_us, sequence), kind, {"symbol": "BTCUSDT"})


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["replay", *PERIOD, *(str(one) for one in arguments)])


@given(st.lists(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5))), max_size=4))
async def test_ordered_series_become_one(parts: list[list[tuple[int, int]]]) -> None:
    made = [[record(*key) for key in sorted(part)] for part in parts]
    found = [one.key async for one in merged([series(part) for part in made])]
    assert found == sorted(key for part in parts for key in part)


async def test_a_batch_with_rows_missing_ends_the_replay_loudly() -> None:
    whole = rows(range(3), [T0_US, T0_US + 1, T0_US + 2])

    async def batches() -> AsyncIterator[Rows]:
        yield Rows(whole, next_cursor="there is more")
        yield Rows(whole.slice(0, 1), partial=True)

    source = records("trade", batches())
    assert [(await anext(source)).row["platform_sequence"] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LakeError, match="cut short after 3 records"):
        await anext(source)


async def test_records_keep_the_distances_of_their_times() -> None:
    clock = ManualClock()
    out: list[float] = []

    async def play() -> None:
        paced = Pace(10.0, clock).keep(series([record(0), record(5_000_000), record(6_000_000)]))
        async for _ in paced:
            out.append(clock.monotonic_s())

    playing = asyncio.create_task(play())
    for _ in range(10):
        await clock.advance(0.1)
    await playing
    assert out == pytest.approx([0.0, 0.5, 0.6])


@pytest.mark.parametrize("text", ["0", "fast", "-1x", "", "1e9"])
def test_a_speed_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="multiple of real time"):
        speed_of(text)


async def test_bytes_are_the_same_while_more_is_stored(api: Api) -> None:
    """As of a snapshot and as of a time, for what is late lands in the same period."""
    (snapshot,) = (await api.get("/v1/snapshots", table="trades"))[1]["data"]
    pins = (("--snapshot-id", snapshot["snapshot_id"]), ("--as-of", snapshot["timestamp"]))
    where = ("--url", api.client.make_url(""), "--key", "right", "--symbols", "BTCUSDT")
    first = [(await asyncio.to_thread(run, *where, *pin)).stdout_bytes for pin in pins]
    assert first[0] == first[1]
    assert [json.loads(line)["platform_sequence"] for line in first[0].splitlines()] == [*range(10)]
    for number in range(20, 26):
        late = rows([number], [T0_US + number * 1_000])
        api.platform.commit(late, place())
        api.platform.refresh()
        for pin in pins:
            again = await asyncio.to_thread(run, *where, *pin)
            assert again.exit_code == 0, again.stderr
            assert again.stdout_bytes == first[0]
    newest = await asyncio.to_thread(run, *where)
    assert len(newest.stdout_bytes.splitlines()) == 16


def platform_with_both(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from k2.lake.tables import QUOTES

    made = Platform(path, monkeypatch)
    made.commit(rows(range(4), [T0_US + i * 1_000_000 for i in range(4)]), place())
    quotes = rows(range(3), [T0_US + 500_000 + i * 1_000_000 for i in range(3)], table=QUOTES)
    made.commit(quotes, place(kind="quotes"), kind="quotes")
    made.close()


def test_trades_and_quotes_in_one_series_and_as_a_capture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform_with_both(tmp_path / "data", monkeypatch)
    where = ("--data-dir", tmp_path / "data", "--data-type", "both")
    lines = run(*where).stdout.splitlines()
    found = [json.loads(line) for line in lines]
    assert [one["type"] for one in found] == ["trade", "quote"] * 3 + ["trade"]
    assert found[0]["price"] == "0"
    assert [one["timestamp"] for one in found] == sorted(one["timestamp"] for one in found)
    capture = tmp_path / "capture"
    result = run(*where, "--as", "capture", "--output", capture)
    assert result.exit_code == 0, result.stderr
    frames = [*read_capture(capture)]
    assert {frame.stream for frame in frames} == {"btcusdt@trade", "btcusdt@bookTicker"}
    mapper = BinanceMapper(["BTCUSDT"])
    mapped = mapper.map([(f.recv_ns // 1_000, f.data) for f in frames], ingestion_us=0)
    assert mapped.refused == []
    assert mapped.trades.column("trade_id").to_pylist() == [str(1_000_000 + i) for i in range(4)]
    assert mapped.quotes.num_rows == 3


@pytest.mark.kafka
async def test_a_topic_gets_every_record_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kafka: KafkaServer
) -> None:
    platform_with_both(tmp_path / "data", monkeypatch)
    topic = f"replay-{tmp_path.name}"
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, 1)])
    await admin.close()
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        asked = ("--data-dir", tmp_path / "data", "--topic", topic, "--kafka", kafka.bootstrap)
        result = await asyncio.to_thread(run, *asked)
        assert result.exit_code == 0, result.stderr
        assert "4 records" in result.stderr
        got: list[Any] = [await asyncio.wait_for(consumer.getone(), 20) for _ in range(4)]
    finally:
        await consumer.stop()
    assert [json.loads(one.value)["platform_sequence"] for one in got] == [*range(4)]
    assert {one.key for one in got} == {b"BTCUSDT"}
    assert [one.timestamp for one in got] == [T0_US // 1_000 + i * 1_000 for i in range(4)]


def test_a_target_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    assert "--topic takes JSON" in run("--topic", "x", "--as", "capture").stderr
    assert "needs a Kafka" in run("--topic", "x").stderr
    both = run("--snapshot-id", "1", "--data-type", "both")
    assert (both.exit_code, "one table" in both.stderr) == (2, True)
