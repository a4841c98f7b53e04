"""Records put into an embedded log before a worker starts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import faust

from k2.catalogue import topic_specs
from k2.clock import SYSTEM_CLOCK
from k2.codecs import Codecs, open_registry
from k2.settings import Settings
from k2.steps.publish import Partitioner, Publisher
from k2.topics import BINANCE_TRADES, MARKET_TOPICS
from k2.transport.registry import registry


@asynccontextmanager
async def embedded_trades(settings: Settings) -> AsyncIterator[Publisher]:
    """What publishes trades to the log of record in the data directory, as a source does.

    Nobody else may have the log open, which is closed at the end.
    """
    directory = settings.core.data_dir
    directory.mkdir(parents=True, exist_ok=True)
    app = faust.App("backlog", broker=f"local://{directory / 'log'}", web_enabled=False)
    registry(app).kafka = settings.kafka
    codecs = Codecs.open(open_registry(settings), MARKET_TOPICS)
    await app.transport.ensure_topics(topic_specs(settings))
    await app.maybe_start_producer()
    yield Publisher(
        BINANCE_TRADES,
        app.producer,
        codecs.of(BINANCE_TRADES.log),
        Partitioner(settings.kafka.partitions),
        SYSTEM_CLOCK,
        settings.kafka.max_batch_bytes // 2,
    )
    await app.producer.stop()
    await app.transport.close()
