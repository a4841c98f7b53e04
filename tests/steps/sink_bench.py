"""A sink step over a log in memory and a real lake."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from faust.types import TP

from k2.codec.schemas import kind_of
from k2.codecs import Codecs
from k2.lake.tables import TABLES
from k2.lake.vector import Place
from k2.lake.writer import LakeWriter
from k2.lakehouse import Lakehouse
from k2.pipeline.groups import Cut, Records, in_groups
from k2.pipeline.sink import SinkBuffer, SinkPolicy
from k2.steps.sink import SinkStep
from k2.testing.clock import ManualClock
from k2.testing.log import MemoryLog
from k2.topics import MarketTopic
from tests.steps.parts import (
    EPOCH,
    QUOTES,
    TRADES,
    Record,
    Tokens,
    quote_rows,
    trade_rows,
)

HOME = TP(TRADES.validated, 0)
POLICY = SinkPolicy(batch_rows=10, interval_s=5.0, min_interval_s=0.0)


@dataclass
class Bench:
    """A sink step over a log in memory and a real lake."""

    lake: Lakehouse
    codecs: Codecs
    clock: ManualClock
    log: MemoryLog
    policy: SinkPolicy = POLICY
    epoch: str = EPOCH
    tokens: Tokens = field(default_factory=Tokens)
    failures: list[BaseException] = field(default_factory=list)
    writers: dict[str, LakeWriter] = field(default_factory=dict)
    step: Any = None
    #: Next offset of the log of record, by partition of the validated topic.
    written: dict[TP, int] = field(default_factory=dict)

    def restart(self) -> None:
        """A new process over the same lake and log."""
        names = [
            name
            for topic in (TRADES, QUOTES)
            for name in (topic.validated, topic.gaps, topic.deferred)
        ]
        self.step = SinkStep(
            {name: kind_of(name) for name in names},
            {**self.lake.writers, **self.writers},
            {name: SinkBuffer(table.arrow_schema, self.policy) for name, table in TABLES.items()},
            {name: self.codecs.reader(name) for name in names},
            lambda _topic: self.epoch,
            self.clock,
            self.failures.append,
        )

    async def write(
        self,
        *records: Record,
        topic: MarketTopic = TRADES,
        partition: int = 0,
        first: int | None = None,
        epoch: str | None = None,
        max_records: int = 4,
    ) -> None:
        """Groups as the validate step writes them; `first` repeats or skips part of the log."""
        tp = TP(topic.validated, partition)
        first = self.written.get(tp, 0) if first is None else first
        rows = trade_rows if topic is TRADES else quote_rows
        values = self.codecs.of(topic.log).encode(rows(records, self.clock.now_us()))
        last = first + len(records) - 1
        for group in in_groups(
            Records(np.arange(first, last + 1), [s.encode() for s, _ in records], list(values)),
            topic=tp.topic,
            partition=partition,
            epoch=epoch or self.epoch,
            first=first,
            last=last,
            cut=Cut(max_records, 1_000_000),
        ):
            await self.log.send_batch(group)
        self.written[tp] = last + 1

    async def add(self, start: int = 0, tp: TP = HOME) -> None:
        """What a topic has from `start` on, as one event."""
        await self.step.add(self.log.batch(tp.topic, tp.partition, start), self.tokens.new())

    async def read_on(self, tp: TP = HOME) -> dict[TP, int]:
        """Ask for the position and read from there, as a worker does."""
        positions = await self.step.positions(frozenset({tp}))
        start = positions.get(tp, 0)
        if start < self.log.end(tp.topic, tp.partition):
            await self.add(start, tp)
        return positions


@pytest.fixture
async def bench(lake: Lakehouse, codecs: Codecs, clock: ManualClock, log: MemoryLog) -> Bench:
    made = Bench(lake, codecs, clock, log)
    made.restart()
    return made


def btc(*ids: int) -> list[Record]:
    return [("BTCUSDT", ident) for ident in ids]


def place(partition: int = 0, topic: str = TRADES.validated, epoch: str = EPOCH) -> Place:
    return Place(epoch, topic, partition)
