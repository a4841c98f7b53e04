"""Feeds a tail from the validated topics: its own reader, all partitions, no consumer group."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import structlog
from faust.types import TP

from k2.clock import Clock
from k2.lake.vector import Place, Vector
from k2.pipeline.cover import CoverReader
from k2.query.tail import Tail
from k2.steps.rows import RowReader
from k2.topics import parse
from k2.tracing import TRACING, contexts_of
from k2.transport.batch import LogBatch
from k2.transport.company import Companies
from k2.transport.reader import LogReader

log = structlog.get_logger(__name__)

#: Records that are shown in one go.
_TOGETHER = 2_000
#: Seconds from one reading to the next, at least: validation hands on partition by partition, and
#: a few of them together take little longer to show than the first.
_PACE_S = 0.02


@dataclass(slots=True)
class _Partition:
    """`whole`: a place met for the first time is held from the beginning of its log."""

    cover: CoverReader
    whole: bool


class TailFeed:
    """One tail's reading of some validated topics.

    `committed`: the vector up to which the tail may drop rows (`QueryEngine.committed`).
    `observe`: told of rows on the event loop, once queries can see them.
    Guarantee: the tail's low-water marks never claim a row that was not read. On any error the
    feed stops by raising; started again (`start` + `run`) it begins at the lake's vector anew.
    """

    def __init__(
        self,
        reader: LogReader,
        tail: Tail,
        rows: RowReader,
        clock: Clock,
        *,
        committed: Callable[[], Vector],
        max_minutes: float,
        max_bytes: Callable[[], int],
        observe: Callable[[pa.RecordBatch], None] = lambda _rows: None,
        poll_s: float = 0.5,
        trim_every_s: float = 1.0,
    ) -> None:
        self._reader, self._tail, self._rows, self._clock = reader, tail, rows, clock
        self._committed, self._observe = committed, observe
        self._max_minutes, self._max_bytes = max_minutes, max_bytes
        self._poll_s, self._trim_every_s = poll_s, trim_every_s
        self._partitions: dict[TP, _Partition] = {}

    async def start(
        self, vector: Vector, epochs: Mapping[str, str], earliest: Mapping[TP, int]
    ) -> None:
        """Begin every partition at the lake's position, or at its earliest offset.

        `epochs`: current epoch per log of record. `earliest`: first offset of each partition of
        the validated topics to read; its keys say which. Raises what the reader's `start` raises.
        """
        positions: dict[TP, int] = {}
        for tp, first in earliest.items():
            log_topic = parse(tp.topic)[0].log
            place = Place(epochs[log_topic], tp.topic, tp.partition)
            stored = vector.get(place)
            # What retention took before we came is not held; the lake has it, or nobody.
            whole = stored is not None or first == 0
            if stored is not None or first == 0:
                self._tail.start(place, -1 if stored is None else stored.sequence)
            positions[tp] = first if stored is None else stored.next_offset
            self._partitions[tp] = _Partition(CoverReader(tp.topic, tp.partition), whole=whole)
        await self._reader.start(positions)

    async def run(self) -> None:
        """Read, decode and trim until cancelled."""
        trimmed_s = self._clock.monotonic_s()
        while True:
            began_s = self._clock.monotonic_s()
            for batches in in_company(await self._reader.getmany(self._poll_s)):
                await self.apply(batches)
                await asyncio.sleep(0)
            now_s = self._clock.monotonic_s()
            if now_s - began_s < _PACE_S:
                await self._clock.sleep(_PACE_S - (now_s - began_s))
            if now_s - trimmed_s >= self._trim_every_s:
                trimmed_s = now_s
                self.trim(now_s)

    def trim(self, now_s: float) -> None:
        """Let the tail drop what it need not hold."""
        before = self._tail.stats().lost
        max_bytes = self._max_bytes()
        stats = self._tail.trim(
            now_s, self._committed(), max_minutes=self._max_minutes, max_bytes=max_bytes
        )
        if stats.lost > before:
            log.warning(
                "tail_over_cap",
                dropped_rows=stats.lost - before,
                held_bytes=stats.nbytes,
                max_bytes=max_bytes,
            )

    async def apply(self, batches: Sequence[LogBatch]) -> None:
        """Add the new groups of some batches. Raises `CoverHoleError` and `DecodeError`."""
        traces = [context for batch in batches for context in contexts_of(batch)]
        records = sum(map(len, batches))
        with TRACING.follow("k2.tail", traces, topic=batches[0].topic, records=records):
            await self._show(batches)

    async def _show(self, batches: Sequence[LogBatch]) -> None:
        partitions = [self._partitions[TP(batch.topic, batch.partition)] for batch in batches]
        covers = [partition.cover for partition in partitions]
        companies = Companies()
        for batch in batches:
            companies.add(batch)
        read = [await self._rows.read_async(*one) for one in zip(batches, covers, strict=True)]
        # Answers are given on this loop too: they need not wait for all of this.
        await asyncio.sleep(0)
        now_s = self._clock.monotonic_s()
        shown: list[pa.RecordBatch] = []
        for batch, partition, parts in zip(batches, partitions, read, strict=True):
            for part in parts:
                place = Place(part.epoch, batch.topic, batch.partition)
                if partition.whole and place not in self._tail.view().places:
                    # A new incarnation of the log of record, read from its first record on.
                    self._tail.start(place, -1)
                self._tail.add(place, part.rows, last=part.last, now_s=now_s)
                shown.append(part.rows)
                partition.whole = True
        if shown:
            await asyncio.sleep(0)
            self._observe(shown[0] if len(shown) == 1 else pa.concat_batches(shown))

    def lag(self) -> int:
        """Records between the reading positions and the ends of the partitions."""
        return sum(
            max(0, (self._reader.highwater(tp) or 0) - self._reader.position(tp))
            for tp in self._partitions
        )


def in_company(batches: Sequence[LogBatch]) -> Iterator[list[LogBatch]]:
    """`batches` in their order: neighbours of one topic together, up to a number of records."""
    held: list[LogBatch] = []
    for batch in batches:
        if not len(batch):
            continue
        if held and (held[0].topic != batch.topic or sum(map(len, held)) + len(batch) > _TOGETHER):
            yield held
            held = []
        held.append(batch)
    if held:
        yield held
