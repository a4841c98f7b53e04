"""Validate, shed and sink over the embedded log and a real lake, moved on step by step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import faust
from faust.types import TP

from k2.catalogue import topic_specs
from k2.codec.schemas import kind_of
from k2.codecs import Codecs
from k2.degradation.levels import Level
from k2.lakehouse import Lakehouse
from k2.pipeline.groups import Cut
from k2.settings import Settings
from k2.steps.lanes import Lanes
from k2.steps.publish import Partitioner, Publisher
from k2.steps.shed import ShedStep, earliest_of
from k2.steps.sink import SinkStep
from k2.steps.validate import ValidateStep
from k2.testing.clock import ManualClock
from k2.testing.log import MemoryTable
from k2.topics import MARKET_TOPICS
from k2.transport.batch import LogBatch
from k2.transport.reader import LogReader
from k2.transport.registry import registry
from tests.steps.parts import TRADES, Record, Tokens, market_of, trade_rows

PARTITIONS = 2


class Pipeline:
    """The steps of one worker; `crash` and `start` replace them, log and lake stay."""

    def __init__(self, app: Any, settings: Settings, codecs: Codecs, clock: ManualClock) -> None:
        self.app = app
        self.settings = settings
        self.codecs = codecs
        self.clock = clock
        self.level = Level.NORMAL
        self.checkpoints = MemoryTable()
        self.ledger = MemoryTable()
        self.tokens = Tokens()
        self.failures: list[BaseException] = []
        self.epochs: dict[str, str] = {}
        self._readers: dict[str, LogReader] = {}
        self._publisher: Publisher | None = None

    def epoch_of(self, topic: str) -> str:
        return self.epochs[market_of(topic).log]

    async def start(self) -> None:
        """New steps, at the positions their state says."""
        app, settings = self.app, self.settings
        self.epochs = await app.transport.epochs([topic.log for topic in MARKET_TOPICS])
        self.lake = await asyncio.to_thread(Lakehouse.open, settings, self.clock)
        self._publisher = Publisher(
            TRADES,
            app.producer,
            self.codecs.of(TRADES.log),
            Partitioner(PARTITIONS),
            self.clock,
            500_000,
        )
        self.shed = ShedStep(
            self.ledger,  # type: ignore[arg-type]
            app.producer,
            app.transport,
            self.epoch_of,
            lambda: self.level,
            self.clock,
            Cut(settings.validate_.group_records, settings.kafka.max_batch_bytes),
        )
        lanes = Lanes(
            settings,
            self.codecs,
            self.lake,
            self.epoch_of,
            self.clock,
            first_pending=self.shed.first_pending,
        )
        self.validate = ValidateStep(
            lanes,
            self.checkpoints,
            app.producer,
            lambda: self.level,
            self.clock,
            checkpoint_s=settings.validate_.checkpoint_s,
        )
        names = [
            name
            for topic in MARKET_TOPICS
            for name in (topic.validated, topic.gaps, topic.deferred)
        ]
        self.sink = SinkStep(
            {name: kind_of(name) for name in names},
            self.lake.writers,
            self.lake.buffers(),
            {name: self.codecs.reader(name) for name in names},
            self.epoch_of,
            self.clock,
            self.failures.append,
        )
        await self._assign()

    async def _assign(self) -> None:
        """Read on where the state says, as after a rebalance."""
        logs, validated = places(TRADES.log), places(TRADES.validated)
        rest = places(TRADES.gaps) | places(TRADES.deferred)
        sunk, noted = await self.sink.positions(validated), await self.shed.positions(validated)
        await self._read("validate", await self.validate.positions(logs), logs)
        await self._read("sink", earliest_of(sunk, noted), validated)
        await self._read("rest", await self.sink.positions(rest), rest)

    async def reassign(self, *, in_time: bool) -> None:
        """All partitions leave and come back; not `in_time`: nothing could be stored before."""
        await self._stop_reading()
        everything = places(TRADES.validated) | places(TRADES.gaps) | places(TRADES.deferred)
        if in_time:
            await self.validate.checkpoint_all()
            await self.shed.store()
            await self.sink.revoke(everything)
        else:
            self.sink.keep(())
        self.validate.keep(())
        self.shed.keep(())
        await self._assign()

    async def _stop_reading(self) -> None:
        for reader in self._readers.values():
            await reader.stop()
        self._readers.clear()

    async def crash(self) -> None:
        """The process dies: what was in memory is gone."""
        await self._stop_reading()
        await asyncio.to_thread(self.lake.close)
        await asyncio.to_thread(self.lake.catalog.close)

    async def publish(self, *records: Record) -> None:
        assert self._publisher is not None
        rows = trade_rows(records, self.clock.now_us())
        await asyncio.gather(*self._publisher.publish(rows, "session"))

    async def validate_some(self) -> int:
        """One round of the validate agent; how many batches it took."""
        found = await self._take("validate")
        for batch in found:
            await self.validate.process(batch, self.tokens.new())
        return len(found)

    async def sink_some(self) -> int:
        """One round of the shed and sink agents on `.validated`, which share its messages."""
        found = await self._take("sink")
        for batch in found:
            await self.shed.note(batch)
            await self.sink.add(batch, self.tokens.new())
        return len(found)

    async def sink_rest(self) -> int:
        """One round of the sink agents on gaps and deferred records."""
        found = await self._take("rest")
        for batch in found:
            await self.sink.add(batch, self.tokens.new())
        return len(found)

    async def bring(self) -> None:
        """One turn of the shed step's loop."""
        await self.shed.store()
        if self.level == Level.NORMAL:
            await self.shed._bring()

    async def settle(self) -> None:
        """Until nothing moves any more, and all of it is stored."""
        moved = True
        while moved:
            moved = bool(await self.validate_some() + await self.sink_some())
            await self.bring()
            moved |= bool(await self.sink_rest())
        await self.validate.checkpoint_all()
        await self.sink.flush()
        assert self.failures == []

    async def _read(self, name: str, at: dict[TP, int], tps: Iterable[TP]) -> None:
        reader = self._readers[name] = self.app.transport.create_reader()
        await reader.start({tp: at.get(tp, 0) for tp in tps})

    async def _take(self, name: str) -> list[LogBatch]:
        return await self._readers[name].getmany(0.0)


def places(topic: str) -> frozenset[TP]:
    return frozenset(TP(topic, partition) for partition in range(PARTITIONS))


@asynccontextmanager
async def pipeline(
    settings: Settings, codecs: Codecs, clock: ManualClock
) -> AsyncIterator[Pipeline]:
    """A started pipeline over an embedded log in the data directory."""
    directory = settings.core.data_dir.absolute()
    app = faust.App(
        "steps",
        broker=f"local://{directory / 'log'}",
        datadir=str(directory / "faust"),
        web_enabled=False,
        topic_disable_leader=True,
    )
    registry(app).kafka = settings.kafka
    await app.transport.ensure_topics(topic_specs(settings))
    await app.maybe_start_producer()
    made = Pipeline(app, settings, codecs, clock)
    await made.start()
    try:
        yield made
    finally:
        await made.crash()
        await app.producer.stop()
        await app.transport.close()
