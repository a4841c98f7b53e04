"""A V1 topic into a V2 log of record, while whoever writes V1 goes on writing.

Guarantee: each V1 record the topic holds becomes one V2 record (validation knows it again by the
place it was read from) or a dead letter. Interrupted, it goes on where it ended; run again, it
brings what was written since.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Final

import pyarrow as pa
from faust.types import TP

from k2.clock import SYSTEM_CLOCK
from k2.codecs import open_registry
from k2.errors import ConfigError, LogError
from k2.migrate.v1 import BadV1, Target, V1Reader, digest_of
from k2.open_log import OpenLog, opened
from k2.settings import Settings
from k2.sources.refused import Refused
from k2.tapes.journal import Journal
from k2.topics import MarketTopic
from k2.transport.batch import LogBatch

_POLL_S: Final = 0.5


@dataclass(slots=True)
class Migrated:
    """What became of a topic or table. `before`: records an earlier run had brought."""

    records: int = 0
    sent: int = 0
    before: int = 0
    bad: int = 0
    examples: list[BadV1] = field(default_factory=list)

    def count(self, read: int, records: pa.RecordBatch | None, bad: list[BadV1]) -> None:
        """`read` more were read, and became these."""
        self.records += read
        self.sent += 0 if records is None else records.num_rows
        self.bad += len(bad)
        self.examples += bad[: max(0, 5 - len(self.examples))]


async def migrate(
    settings: Settings,
    source: str,
    topic: MarketTopic,
    target: Target,
    *,
    dry_run: bool,
    stop: asyncio.Event,
    follow: bool,
    progress: Callable[[Migrated], None] = lambda _: None,
) -> Migrated:
    """Bring `source` up to its present end, or with `follow` until `stop`."""
    made = Migrated()
    async with opened(settings, topic) as log:
        move = _Move(settings, log, source, target, made, dry_run=dry_run)
        positions = await move.positions()
        reader = log.transport.create_reader()
        await reader.start(positions)
        try:
            while not stop.is_set() and (follow or move.behind()):
                for batch in await reader.getmany(_POLL_S):
                    await move.bring(batch)
                progress(made)
        finally:
            await reader.stop()
    return made


class _Move:
    def __init__(
        self,
        settings: Settings,
        log: OpenLog,
        source: str,
        target: Target,
        made: Migrated,
        *,
        dry_run: bool,
    ) -> None:
        self._log, self._source, self._made, self._dry_run = log, source, made, dry_run
        self._v1 = V1Reader(open_registry(settings).schema, target)
        self._journal = Journal(settings.core.data_dir / "loads")
        self._ends: dict[int, int] = {}
        self._at: dict[int, int] = {}
        self._epoch = ""

    async def positions(self) -> dict[TP, int]:
        """Where to read on in each partition. Raises `ConfigError` for a topic that is not there"""
        bounds = await self._bounds()
        if not bounds:
            raise ConfigError(
                f"topic {self._source!r} is not there; name the V1 topic as the log has it",
                topic=self._source,
            )
        self._epoch = (await self._log.transport.epochs([self._source]))[self._source]
        for partition, (first, end) in bounds.items():
            done = self._journal.rows(self._key(partition), self._epoch)
            self._made.before += max(0, done - first)
            self._ends[partition] = end
            self._at[partition] = max(first, done)
        return {TP(self._source, partition): at for partition, at in self._at.items()}

    async def _bounds(self) -> dict[int, tuple[int, int]]:
        found: dict[int, tuple[int, int]] = {}
        for partition in count():
            tp = TP(self._source, partition)
            try:
                found[partition] = (await self._log.transport.bounds([tp]))[tp]
            except LogError:
                return found
        return found

    def behind(self) -> bool:
        """True while the end that was there at the start is not reached."""
        return any(self._at[partition] < end for partition, end in self._ends.items())

    async def bring(self, batch: LogBatch) -> None:
        """One batch into the log; noted once the log has it."""
        digest = digest_of(self._epoch, batch.topic, batch.partition)
        records, bad = await asyncio.to_thread(self._v1.read, batch, digest, SYSTEM_CLOCK.now_us())
        self._made.count(len(batch), records, bad)
        if not self._dry_run:
            await send(self._log, records, bad, digest, f"{self._source} offset")
            self._journal.note(self._key(batch.partition), self._epoch, batch.last_offset + 1)
        self._at[batch.partition] = batch.last_offset + 1

    def _key(self, partition: int) -> str:
        return f"v1-{self._source}-{partition}"


async def send(
    log: OpenLog, records: pa.RecordBatch | None, bad: list[BadV1], digest: str, place: str
) -> None:
    """Records into the log and what is none to the dead letters; returns once the log has both."""
    futures = [] if records is None else list(log.publisher.publish(records, digest))
    if bad:
        now_us = SYSTEM_CLOCK.now_us()
        futures += log.dead_letters.frames(
            [
                Refused("BAD_V1", row.raw, f"{place} {row.offset}: {row.detail}", now_us)
                for row in bad
            ]
        )
    await asyncio.gather(*futures)
