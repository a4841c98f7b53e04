"""Sink: validated records and gap events to the lake, exactly once.

Guarantee: a row is in the lake once its event is acknowledged; where to start is what the lake's
own vector says, so a crash between commit and acknowledgement repeats nothing. A commit that
another writer overtook, or a range that does not abut, stops the worker; restarted, it begins at
the vector.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from faust.types import TP

from k2 import metrics
from k2.clock import Clock
from k2.lake.vector import Place, Position, Vector
from k2.lake.writer import CommitResult, LakeWriter
from k2.pipeline.cover import CoverReader
from k2.pipeline.sink import Flush, SinkBuffer, places_of
from k2.steps.rows import RowReader
from k2.transport.batch import LogBatch

log = structlog.get_logger(__name__)

#: Batches with more rows are decoded in a thread; for fewer the switch costs more than it gains.
_INLINE_ROWS = 500


@dataclass(slots=True)
class TableCounts:
    """What this worker committed to one table."""

    rows: int = 0
    commits: int = 0
    files: int = 0
    last_commit_ms: float | None = None


@dataclass(slots=True)
class _Table:
    """One table: its buffer, its writer, and the task that commits."""

    name: str
    buffer: SinkBuffer
    writer: LakeWriter
    counts: TableCounts = field(default_factory=TableCounts)
    vector: Vector = field(default_factory=Vector.empty)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    landed: asyncio.Event = field(default_factory=asyncio.Event)
    committing: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True)
class _Source:
    """One partition the sink reads."""

    table: _Table
    cover: CoverReader
    read_to: int


class SinkStep:
    """Feeds the tables from the topics given: topic read -> table name."""

    def __init__(
        self,
        topics: Mapping[str, str],
        writers: Mapping[str, LakeWriter],
        buffers: Mapping[str, SinkBuffer],
        rows: Mapping[str, RowReader],
        epoch_of: Callable[[str], str],
        clock: Clock,
        on_error: Callable[[BaseException], None],
    ) -> None:
        self._topics = topics
        self._tables = {name: _Table(name, buffers[name], writers[name]) for name in writers}
        self._rows = rows
        self._epoch_of = epoch_of
        self._clock = clock
        self._on_error = on_error
        self._sources: dict[TP, _Source] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin committing; call it on the event loop."""
        for table in self._tables.values():
            task = asyncio.create_task(self._commit_when_due(table))
            task.add_done_callback(self._observe)
            self._tasks.append(task)

    async def positions(self, tps: frozenset[TP]) -> dict[TP, int]:
        """Where to start reading: the lake's vector, taken after any commit on its way."""
        positions: dict[TP, int] = {}
        for table in {self._topics[tp.topic]: self._table_of(tp) for tp in tps}.values():
            async with table.committing:
                table.vector = await asyncio.to_thread(table.writer.vector)
        for tp in tps:
            table = self._table_of(tp)
            place = Place(self._epoch_of(tp.topic), tp.topic, tp.partition)
            table.buffer.revoke(places_of({(tp.topic, tp.partition)}))
            stored = table.vector.get(place)
            table.buffer.assign(place, stored)
            applied = {
                other.epoch: position.sequence
                for other, position in table.vector.entries.items()
                if (other.topic, other.partition) == (tp.topic, tp.partition)
            }
            strict = tp.topic.endswith((".validated", ".deferred"))
            cover = CoverReader(tp.topic, tp.partition, applied, strict=strict)
            start = 0 if stored is None else stored.next_offset
            self._sources[tp] = _Source(table, cover, start)
            if stored is not None:
                positions[tp] = stored.next_offset
        return positions

    async def add(self, batch: LogBatch, token: Any) -> None:
        """Take one batch; returns when there is room for more. `token` is acked once stored."""
        tp = TP(batch.topic, batch.partition)
        source = self._sources[tp]
        table, buffer = source.table, source.table.buffer
        read = self._rows[batch.topic].read
        if len(batch) > _INLINE_ROWS:
            # Arrow and the codec hold no GIL: meanwhile the loop unpacks what comes next.
            parts = await asyncio.to_thread(read, batch, source.cover)
        else:
            parts = read(batch, source.cover)
        for number, part in enumerate(parts, start=1):
            place = Place(part.epoch, batch.topic, batch.partition)
            if buffer.next_position(place) is None and part.epoch != self._epoch_of(batch.topic):
                buffer.assign(place, table.vector.get(place))
            position = Position(part.next_offset, part.last)
            last = token if number == len(parts) else None
            buffer.add(place, part.rows, position, self._clock.monotonic_s(), last)
        if not parts:
            token.ack()  # applied before: the lake has it
        source.read_to = batch.last_offset + 1
        metrics.CONSUMED.labels(batch.topic, "sink").inc(len(batch))
        table.wake.set()
        while buffer.full:
            table.landed.clear()
            await table.landed.wait()

    async def flush(self) -> None:
        """Commit everything held, now."""
        for table in self._tables.values():
            while self._holding(table) or table.buffer.flying:
                await self._commit(table)

    async def stop(self) -> None:
        """Commit everything held and end the commit tasks."""
        await self.flush()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def read_to(self) -> dict[TP, int]:
        """The next offset to read of each partition."""
        return {tp: source.read_to for tp, source in self._sources.items()}

    @property
    def pending_rows(self) -> int:
        """Rows read and not yet in the lake."""
        return sum(
            table.buffer.rows + (table.buffer.flying.rows.num_rows if table.buffer.flying else 0)
            for table in self._tables.values()
        )

    def vectors(self) -> dict[str, Vector]:
        """The newest vector known of each table."""
        return {name: table.vector for name, table in self._tables.items()}

    def counts(self) -> dict[str, TableCounts]:
        return {name: table.counts for name, table in self._tables.items()}

    def _holding(self, table: _Table) -> bool:
        return table.buffer.wait_s(self._clock.monotonic_s()) is not None

    def _table_of(self, tp: TP) -> _Table:
        return self._tables[self._topics[tp.topic]]

    def _observe(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_error(error)

    async def _commit_when_due(self, table: _Table) -> None:
        while True:
            table.wake.clear()
            wait_s = table.buffer.wait_s(self._clock.monotonic_s())
            if wait_s == 0.0:
                await self._commit(table)
                continue
            try:
                async with asyncio.timeout(wait_s):
                    await table.wake.wait()
            except TimeoutError:
                continue

    async def _commit(self, table: _Table) -> None:
        """One commit of what waits; a failed one raises with its rows still held."""
        async with table.committing:
            if not self._holding(table):
                return
            flush = table.buffer.take(self._clock.monotonic_s())
            metrics.SINK_BUFFER_ROWS.labels(table.name).set(table.buffer.rows)
            try:
                result = await asyncio.to_thread(
                    table.writer.commit,
                    flush.rows if flush.rows.num_rows else None,
                    flush.base,
                    flush.positions,
                )
            except BaseException:
                table.buffer.failed(flush, self._clock.monotonic_s())
                metrics.COMMIT_FAILURES.labels(table.name).inc()
                raise
            self._landed(table, flush, result)

    def _landed(self, table: _Table, flush: Flush, result: CommitResult) -> None:
        tokens = table.buffer.committed(flush, self._clock.monotonic_s())
        table.vector = result.vector
        counts = table.counts
        counts.rows += result.rows
        counts.commits += 1
        counts.files += result.files
        counts.last_commit_ms = result.seconds * 1_000
        metrics.ROWS_WRITTEN.labels(table.name).inc(result.rows)
        metrics.COMMITS.labels(table.name).inc()
        metrics.WRITE_SECONDS.labels(table.name).observe(result.seconds)
        metrics.TRANSACTION_ROWS.labels(table.name).observe(result.rows)
        log.info(
            "committed",
            table=table.name,
            snapshot=result.snapshot_id,
            rows=result.rows,
            files=result.files,
            ms=round(result.seconds * 1_000, 1),
            attempts=result.attempts,
        )
        for token in tokens:
            token.ack()
        table.landed.set()
        table.wake.set()
