"""Sink: validated records and gap events to the lake, exactly once.

Guarantee: rows and positions become visible together, and where to start is what the lake's own
vector says. So an event is acknowledged as soon as its rows are held, and a rebalance never waits
for the lake; what may be committed to the log is capped by the vector (`ceiling`). A commit that
another writer overtook, or a range that does not abut, stops the worker; restarted, it begins at
the vector.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import pyarrow as pa
import structlog
from faust.types import TP

from k2 import metrics
from k2.clock import Clock
from k2.errors import LakeError, StaleWriterError
from k2.faultpoints import Point, reached
from k2.lake.vector import Place, Position, Vector
from k2.lake.writer import CommitResult
from k2.pipeline.cover import CoverReader
from k2.pipeline.sink import Flush, SinkBuffer, places_of
from k2.steps.rows import RowPart, RowReader
from k2.tracing import TRACING, contexts_of, few
from k2.transport.batch import LogBatch

log = structlog.get_logger(__name__)

#: What a commit that is given up ends with; anything else is a defect.
_ERRORS: Final = ("LakeError", "CommitConflictError", "StaleWriterError")


class TableWriter(Protocol):
    """Where a table's rows go, with the positions they lead to; as `LakeWriter`."""

    def vector(self) -> Vector: ...

    def commit(
        self,
        rows: pa.Table | None,
        base: Mapping[Place, Position | None],
        positions: Mapping[Place, Position],
    ) -> CommitResult: ...


@dataclass(slots=True)
class TableCounts:
    """What this worker committed to one table."""

    rows: int = 0
    commits: int = 0
    files: int = 0
    last_commit_ms: float | None = None


@dataclass(slots=True)
class _Table:
    """One table: its buffer, its writer, and the commit on its way.

    `room`: set when a commit has landed or partitions have left.
    """

    name: str
    buffer: SinkBuffer
    writer: TableWriter
    counts: TableCounts = field(default_factory=TableCounts)
    vector: Vector = field(default_factory=Vector.empty)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    room: asyncio.Event = field(default_factory=asyncio.Event)
    committing: asyncio.Lock = field(default_factory=asyncio.Lock)
    commit: asyncio.Task[None] | None = None
    #: Traces of what is held.
    traces: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class _Source:
    """One partition the sink reads."""

    table: _Table
    cover: CoverReader
    read_to: int


class SinkStep:
    """Feeds the tables from the topics given: topic read -> table name.

    A table's writer may make other rows of those it is given, as candles are made of trades.
    """

    def __init__(
        self,
        topics: Mapping[str, str],
        writers: Mapping[str, TableWriter],
        buffers: Mapping[str, SinkBuffer],
        rows: Mapping[str, RowReader],
        epoch_of: Callable[[str], str],
        clock: Clock,
        on_error: Callable[[BaseException], None],
        *,
        name: str = "sink",
        turn: asyncio.Lock | None = None,
    ) -> None:
        """`turn`: held during a commit, shared with the other steps of the worker."""
        self._name = name
        # A commit is mostly Python: several at once would leave the event loop, and so every query
        # and every new record, one turn in four of the interpreter instead of every other one.
        self._turn = turn or asyncio.Lock()
        self._topics = topics
        self._tables = {name: _Table(name, buffers[name], writers[name]) for name in writers}
        self._rows = rows
        self._epoch_of = epoch_of
        self._clock = clock
        self._on_error = on_error
        self._sources: dict[TP, _Source] = {}
        self._tasks: list[asyncio.Task[None]] = []
        for table in writers:
            _begin_counting(table)

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
            self._forget(tp)
            stored = self._assign(tp)
            if stored is not None:
                positions[tp] = stored.next_offset
        return positions

    def ceiling(self, tp: TP) -> int | None:
        """The committed offset must not pass what the lake holds; None: it holds nothing."""
        stored = self._table_of(tp).vector.get(self._place(tp))
        return None if stored is None else stored.next_offset

    async def add(self, batch: LogBatch, token: Any) -> None:
        """Take one batch; returns when there is room for more.

        `token` is acked once its rows are held: a rebalance waits for it.
        """
        tp = TP(batch.topic, batch.partition)
        source = self._sources.get(tp)
        parts = (
            [] if source is None else await self._rows[batch.topic].read_async(batch, source.cover)
        )
        if source is not None and self._sources.get(tp) is source:
            self._hold(batch, source, parts)
        # Else the partition left meanwhile: who has it now reads from the vector.
        token.ack()
        while source is not None and self._sources.get(tp) is source and source.table.buffer.full:
            source.table.room.clear()
            await source.table.room.wait()

    async def revoke(self, leaving: Collection[TP]) -> None:
        """Before partitions leave: store what is held, and forget it, stored or not.

        May be cancelled: what is not in the lake then is read again by whoever has it next.
        """
        try:
            await self.flush()
        finally:
            for tp in leaving:
                self._forget(tp)

    def keep(self, tps: Collection[TP]) -> None:
        """Forget every partition but these: others have them now."""
        for tp in self._sources.keys() - set(tps):
            self._forget(tp)

    async def flush(self) -> None:
        """Commit everything held, now. Cancelled, it leaves a commit on its way to its end."""
        for table in self._tables.values():
            while self._holding(table) or table.buffer.flying:
                await self._commit(table)

    async def stop(self) -> None:
        """Commit everything held and end the commit tasks, also when cancelled meanwhile."""
        try:
            await self.flush()
        finally:
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

    def _hold(self, batch: LogBatch, source: _Source, parts: list[RowPart]) -> None:
        table, buffer = source.table, source.table.buffer
        for part in parts:
            place = Place(part.epoch, batch.topic, batch.partition)
            if buffer.next_position(place) is None and part.epoch != self._epoch_of(batch.topic):
                buffer.assign(place, table.vector.get(place))
            position = Position(part.next_offset, part.last)
            buffer.add(place, part.rows, position, self._clock.monotonic_s())
        if contexts := contexts_of(batch):
            table.traces = few(table.traces, contexts)
        source.read_to = batch.last_offset + 1
        metrics.CONSUMED.labels(batch.topic, self._name).inc(len(batch))
        table.wake.set()

    def _assign(self, tp: TP) -> Position | None:
        """Begin a partition at the lake's position, which it returns."""
        table, place = self._table_of(tp), self._place(tp)
        stored = table.vector.get(place)
        table.buffer.assign(place, stored)
        applied = {
            other.epoch: position.sequence
            for other, position in table.vector.entries.items()
            if (other.topic, other.partition) == (tp.topic, tp.partition)
        }
        strict = tp.topic.endswith((".validated", ".deferred"))
        cover = CoverReader(tp.topic, tp.partition, applied, strict=strict)
        self._sources[tp] = _Source(table, cover, 0 if stored is None else stored.next_offset)
        return stored

    def _forget(self, tp: TP) -> None:
        """Drop what is held of a partition; a commit that has some of it goes on."""
        source = self._sources.pop(tp, None)
        if source is not None:
            source.table.buffer.revoke(places_of({(tp.topic, tp.partition)}))
            source.table.room.set()

    def _place(self, tp: TP) -> Place:
        return Place(self._epoch_of(tp.topic), tp.topic, tp.partition)

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
        """Wait for one commit of what is held; a failed one raises.

        A task of its own: the thread can't be called back, so whoever is cancelled here must not
        take its outcome along.
        """
        if table.commit is None or (table.commit.done() and table.buffer.flying is None):
            table.commit = asyncio.create_task(self._commit_held(table))
            table.commit.add_done_callback(self._observe)
        await asyncio.shield(table.commit)

    async def _commit_held(self, table: _Table) -> None:
        async with table.committing, self._turn:
            if not self._holding(table):
                return
            flush = table.buffer.take(self._clock.monotonic_s())
            metrics.SINK_BUFFER_ROWS.labels(table.name).set(table.buffer.rows)
            metrics.BATCH_ROWS.labels(table.name).observe(flush.rows.num_rows)
            traces, table.traces = table.traces, []
            try:
                with TRACING.span("k2.commit", traces, table=table.name, rows=flush.rows.num_rows):
                    result = await asyncio.to_thread(
                        table.writer.commit,
                        flush.rows if flush.rows.num_rows else None,
                        flush.base,
                        flush.positions,
                    )
            except Exception as exc:
                metrics.COMMIT_FAILURES.labels(table.name).inc()
                metrics.WRITE_ERRORS.labels(table.name, type(exc).__name__).inc()
                if not self._left_meanwhile(table, flush, exc):
                    raise
            else:
                self._landed(table, flush, result)

    def _left_meanwhile(self, table: _Table, flush: Flush, exc: Exception) -> bool:
        """What a commit that failed leaves behind; True when only a partition that left was stale.

        Rows whose fate is not known stay on their way: nothing may be built on them.
        """
        if not isinstance(exc, LakeError) or exc.details.get("outcome") != "absent":
            return False
        left = isinstance(exc, StaleWriterError) and not table.buffer.holds(
            flush, Place(*exc.details["place"])
        )
        table.buffer.failed(flush, self._clock.monotonic_s())
        if left:
            log.info("commit_without_what_left", **exc.details)
        table.room.set()
        table.wake.set()
        return left

    def _landed(self, table: _Table, flush: Flush, result: CommitResult) -> None:
        reached(Point.BEFORE_SINK_ACK)
        table.buffer.committed(flush, self._clock.monotonic_s())
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
        table.room.set()
        table.wake.set()


def _begin_counting(table: str) -> None:
    """Failures count from 0: the first one ends the worker, and the growth of a series that begins
    with it is unknown to Prometheus."""
    metrics.COMMIT_FAILURES.labels(table)
    for error in _ERRORS:
        metrics.WRITE_ERRORS.labels(table, error)
