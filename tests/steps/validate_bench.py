"""A validate step over a log and a table in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from faust.types import TP

from k2.codecs import Codecs
from k2.degradation.levels import Level
from k2.degradation.tiers import TierLists, Tiers
from k2.pipeline.cover import CoverReader
from k2.pipeline.validate import LaneCodecs, Validator
from k2.settings import Settings
from k2.steps.validate import ValidateStep
from k2.testing.clock import ManualClock
from k2.testing.log import MemoryLog, MemoryTable
from k2.topics import MarketTopic
from tests.steps.parts import EPOCH, TRADES, Record, Tokens, out_of

HOME = TP(TRADES.log, 0)
CHECKPOINT_S = 5.0
TIERS = Tiers(TierLists(["BTC"], ["ETH"], ["USDT"]))


@dataclass
class Factory:
    """`ValidatorFactory` without a lake."""

    settings: Settings
    codecs: Codecs
    clock: ManualClock
    group_records: int = 4_096
    blocking: bool = False
    stored: int = -1

    def make(self, topic: MarketTopic, partition: int) -> Validator:
        return Validator(
            topic,
            partition,
            EPOCH,
            codecs=LaneCodecs(
                self.codecs.of(topic.log), self.codecs.of(topic.gaps), self.codecs.of(topic.dlq)
            ),
            options=self.settings.validate_.model_copy(
                update={"group_records": self.group_records}
            ),
            clock=self.clock,
            tiers=TIERS,
        )

    def may_block(self, validator: Validator) -> bool:
        return self.blocking

    def stored_through(self, tp: TP) -> int:
        return self.stored


@dataclass
class Bench:
    """A validate step between a log in memory and a table in memory."""

    step: ValidateStep
    log: MemoryLog
    table: MemoryTable
    codecs: Codecs
    factory: Factory
    clock: ManualClock
    level: Level = Level.NORMAL
    tokens: Tokens = field(default_factory=Tokens)

    def restart(self) -> None:
        """A new process over the same log and table."""
        self.step = ValidateStep(
            self.factory,
            self.table,
            self.log,
            lambda: self.level,
            self.clock,
            checkpoint_s=CHECKPOINT_S,
        )

    async def write(self, *records: Record, topic: MarketTopic = TRADES) -> None:
        await self.log.send_batch(out_of(self.codecs, records, topic=topic))

    async def process(self, start: int = 0, topic: MarketTopic = TRADES) -> None:
        """What the log of record has from `start` on, as one event."""
        batch = self.log.batch(topic.log, 0, start)
        await self.step.process(batch, self.tokens.new())

    def validated(self, topic: MarketTopic = TRADES) -> list[int]:
        """Offsets of the log of record that a reader of the validated topic applies."""
        reader = CoverReader(topic.validated, 0)
        return [
            offset
            for batch in self.log.batches(topic.validated)
            for group in reader.read(batch)
            for offset in group.sequences.tolist()
        ]

    @property
    def checkpoint(self) -> int | None:
        """The position of the stored checkpoint: where a new process would read on."""
        validator = self.factory.make(TRADES, 0)
        validator.restore(self.table.load(HOME))
        return validator.next_offset or None


@pytest.fixture
async def bench(settings: Settings, codecs: Codecs, clock: ManualClock, log: MemoryLog) -> Bench:
    factory = Factory(settings, codecs, clock)
    made = Bench(None, log, MemoryTable(), codecs, factory, clock)  # type: ignore[arg-type]
    made.restart()
    assert await made.step.positions(frozenset({HOME})) == {}
    return made


def btc(*ids: int) -> list[Record]:
    return [("BTCUSDT", ident) for ident in ids]
