"""The table of reference data: on both logs, after a restart, on a second worker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from k2.codec.registry import FileRegistry
from k2.codecs import Codecs
from k2.records import build
from k2.steps.reference import ReferenceTable
from k2.topics import MarketTopic
from k2.transport.admin import TopicSpec
from k2.transport.batch import OutBatch
from tables.reference import REFERENCE, reference_table
from tests.transport.drivers import PATIENCE_S, running

TOPIC = MarketTopic("crypto", "reference_data", "binance")
_FACTS = ("name", "isin", "status", "base_asset", "quote_asset", "currency")
_DECIMALS = ("tick_size", "lot_size", "min_notional")


def outputs(codecs: Codecs, *said: tuple[str, int, str]) -> list[OutBatch]:
    """(symbol, since, tick size) as the validated topic has them, and a batch of no record."""
    batch = build(
        "reference_data",
        len(said),
        {
            "message_id": [f"BINANCE:{since}:{symbol}:f-1" for symbol, since, _ in said],
            "reference_id": "f-1",
            "symbol": [symbol for symbol, _, _ in said],
            "exchange": "BINANCE",
            "asset_class": "crypto",
            "timestamp": [since for _, since, _ in said],
            "receive_timestamp": 9,
            "ingestion_timestamp": 9,
            **dict.fromkeys(_FACTS, "x"),
            **dict.fromkeys(_DECIMALS, "0"),
            "tick_size": [tick for _, _, tick in said],
        },
    )
    values = list(codecs.of(TOPIC.log).encode(batch))
    empty = OutBatch(TOPIC.validated, 0, [None], [None])
    return [OutBatch(TOPIC.validated, 0, values, [b"key"] * len(values)), empty]


def ticks(table: ReferenceTable) -> list[tuple[str, int, str]]:
    rows = table.statements().to_pylist()
    return sorted(
        (r["symbol"], int(r["timestamp"].timestamp() * 1e6), str(r["tick_size"])) for r in rows
    )


@contextlib.asynccontextmanager
async def worker(driver: Any, codecs: Codecs, app_id: str) -> AsyncIterator[ReferenceTable]:
    app = driver.app(app_id, store="memory://")
    table = reference_table(app)

    @app.agent(app.topic(f"{app_id}-input", partitions=1, internal=True))
    async def agent(stream: Any) -> None:
        async for _ in stream:
            pass

    async with running(app):
        yield ReferenceTable(table, codecs.of(TOPIC.log))


async def until(test: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not test():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.timeout(120)
async def test_what_was_said_is_there_again_and_on_every_worker(
    driver: Any, tmp_path: Path
) -> None:
    codecs = Codecs.open(FileRegistry(tmp_path / "registry"), [TOPIC])
    app_id = f"reference-{driver.name}"
    admin = (await driver.writer()).transport
    changelog = f"{app_id}-{REFERENCE}-changelog"
    await admin.ensure_topics(
        [TopicSpec(changelog, 1, compacted=True), TopicSpec(f"{app_id}-input", 1)]
    )
    said = [("BTCUSDT", 5, "0.0100000000"), ("ETHUSDT", 5, "0.1000000000")]
    later = ("BTCUSDT", 7, "0.0200000000")
    async with worker(driver, codecs, app_id) as first:
        assert await (await first.put(outputs(codecs, *said))) == 2
        # Written again, as after a crash: nothing more.
        assert await (await first.put(outputs(codecs, *said))) == 2
        assert ticks(first) == said
        if driver.clustered:
            async with worker(driver, codecs, app_id) as second:
                await until(lambda: len(second) == 2)
                await (await first.put(outputs(codecs, later)))
                # It goes on after what it recovered.
                await until(lambda: len(second) == 3)
                assert ticks(second) == sorted([*said, later])
        else:
            await (await first.put(outputs(codecs, later)))
    async with worker(driver, codecs, app_id) as again:
        await until(lambda: len(again) == 3)
        assert ticks(again) == sorted([*said, later])
