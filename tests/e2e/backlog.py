"""Trades that wait in the log before a worker starts."""

from __future__ import annotations

import asyncio

import faust

from k2.catalogue import topic_specs
from k2.clock import SYSTEM_CLOCK
from k2.codec.registry import FileRegistry
from k2.codecs import Codecs
from k2.settings import Settings
from k2.steps.publish import Partitioner, Publisher
from k2.topics import BINANCE_TRADES, MARKET_TOPICS
from k2.transport.registry import registry
from tests.steps.parts import trade_rows


async def write_backlog(settings: Settings, symbols: tuple[str, ...], ids: int) -> None:
    """Trades 1..ids of every symbol in the embedded log, as a source leaves them."""
    directory = settings.core.data_dir
    app = faust.App("backlog", broker=f"local://{directory / 'log'}", web_enabled=False)
    registry(app).kafka = settings.kafka
    codecs = Codecs.open(FileRegistry(directory / "registry"), MARKET_TOPICS)
    await app.transport.ensure_topics(topic_specs(settings))
    await app.maybe_start_producer()
    publisher = Publisher(
        BINANCE_TRADES,
        app.producer,
        codecs.of(BINANCE_TRADES.log),
        Partitioner(settings.kafka.partitions),
        SYSTEM_CLOCK,
        settings.kafka.max_batch_bytes // 2,
    )
    step = 10_000
    for first in range(1, ids + 1, step):
        for symbol in symbols:
            records = [(symbol, ident) for ident in range(first, min(first + step, ids + 1))]
            rows = trade_rows(records, SYSTEM_CLOCK.now_us() - ids * 1_000)
            await asyncio.gather(*publisher.publish(rows, "backlog"))
    await app.producer.stop()
    await app.transport.close()
