"""Shed: a ledger of what degradation put off, brought to the deferred topics at NORMAL.

It is kept where the validated topics are read, beside the sink.

Guarantee: degradation delays records, it does not lose them. The ledger is fed by headers of the
validated groups themselves, so it notes exactly what readers did not get; it and its reading
position are kept in a table with a changelog. What is brought again after a crash has covers, by
which readers drop it. What the log of record deleted before it was brought is lost; it is counted
and told, and what follows goes on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import structlog
from faust.types import TP

from k2 import metrics
from k2.clock import Clock
from k2.degradation.deferred import Span, emit_deferred, lost, plan
from k2.degradation.ledger import Entry, Ledger, LogPlace, shed_in
from k2.degradation.levels import Level
from k2.errors import RetentionGapError
from k2.pipeline.cover import CoverReader
from k2.pipeline.groups import Cut
from k2.steps.publish import BatchProducer
from k2.steps.tables import FaustCheckpoints
from k2.topics import parse
from k2.transport.batch import LogBatch
from k2.transport.reader import LogReader

log = structlog.get_logger(__name__)

_POSITION = b"position"
_EVERY_S = 1.0
_POSITION_S = 5.0
_POLL_S = 0.5


class ReaderFactory(Protocol):
    """The transport."""

    def create_reader(self) -> LogReader:
        """A reader without group."""

    async def bounds(self, tps: Collection[TP]) -> Mapping[TP, tuple[int, int]]:
        """(earliest, end) offsets."""


#: Of one answer; a long overload makes many.
_MOST_RANGES = 1_000


class _Position(msgspec.Struct, array_like=True):
    """`applied`: highest offset noted, per incarnation of the log of record."""

    next_offset: int
    applied: dict[str, int]


@dataclass(slots=True)
class _Lane:
    """One partition of one validated topic.

    `durable`: the position known to be in the table.
    """

    ledger: Ledger
    cover: CoverReader
    next_offset: int
    written: dict[bytes, bytes | None] = field(default_factory=dict)
    stored_s: float = 0.0
    durable: int = 0


class ShedStep:
    """The ledger of the partitions this worker owns."""

    def __init__(
        self,
        table: FaustCheckpoints,
        producer: BatchProducer,
        readers: ReaderFactory,
        epoch_of: Callable[[str], str],
        level: Callable[[], int],
        clock: Clock,
        cut: Cut,
    ) -> None:
        self._table = table
        self._producer = producer
        self._readers = readers
        self._epoch_of = epoch_of
        self._level = level
        self._clock = clock
        self._cut = cut
        self._lanes: dict[TP, _Lane] = {}
        self.brought = 0

    async def positions(self, tps: frozenset[TP]) -> dict[TP, int]:
        """Restore the ledgers of validated partitions; where each reads on."""
        found: dict[TP, int] = {}
        for tp in tps:
            ledger, position = Ledger(), _Position(0, {})
            for key, value in sorted(self._table.load(tp).items()):
                if key == _POSITION:
                    position = msgspec.msgpack.decode(value, type=_Position)
                else:
                    ledger.load(key, value)
            self._tell_lost(ledger)
            cover = CoverReader(tp.topic, tp.partition, dict(position.applied))
            at = position.next_offset
            self._lanes[tp] = _Lane(ledger, cover, at, durable=at)
            if position.next_offset:
                found[tp] = position.next_offset
        return found

    def keep(self, tps: Collection[TP]) -> None:
        """Forget every partition but these: others have them now."""
        self._lanes = {tp: lane for tp, lane in self._lanes.items() if tp in tps}

    def ceiling(self, tp: TP) -> int | None:
        """The committed offset must not pass the ledger's position; None: it has none."""
        lane = self._lanes.get(tp)
        return lane.durable if lane is not None and lane.durable else None

    async def note(self, batch: LogBatch) -> None:
        """Read the headers of one validated batch."""
        lane = self._lanes.get(TP(batch.topic, batch.partition))
        # A partition that left is noted by who has it now.
        if lane is None or batch.last_offset < lane.next_offset:
            return
        for group in lane.cover.read(batch):
            for shed in shed_in(batch, group):
                self._keep(lane, [lane.ledger.add(shed)])
        lane.next_offset = batch.last_offset + 1

    async def run(self) -> None:
        """Store what was noted, and bring what was put off once the level is NORMAL, for ever."""
        while True:
            await self._clock.sleep(_EVERY_S)
            await self.store()
            if self._level() == Level.NORMAL:
                await self._bring()

    async def store(self) -> None:
        """Write what was noted; positions that only moved on, now and then."""
        now_s = self._clock.monotonic_s()
        for tp, lane in list(self._lanes.items()):
            moved = lane.next_offset > lane.durable and now_s - lane.stored_s >= _POSITION_S
            if lane.written or moved:
                await self._store(tp, lane)

    def pending(self) -> dict[int, int]:
        """Records put off and not yet brought, by tier."""
        total: Counter[int] = Counter()
        for lane in self._lanes.values():
            for place in filter(self._is_there, lane.ledger.places()):
                total.update(lane.ledger.counts(place))
        return dict(total)

    def facts(self) -> dict[str, object]:
        """For people: what is put off here, by tier and as ranges of the log; rising offsets."""
        ranges = [
            {
                "topic": shed.topic,
                "partition": shed.partition,
                "tier": shed.tier,
                "first_offset": shed.first,
                "last_offset": shed.last,
                "records": shed.count,
            }
            for lane in self._lanes.values()
            for place in lane.ledger.places()
            for shed in lane.ledger.pending(place)
        ]
        pending = self.pending()
        return {
            "pending": sum(pending.values()),
            "pending_by_tier": {str(tier): count for tier, count in sorted(pending.items())},
            "brought": self.brought,
            "ranges": ranges[:_MOST_RANGES],
            "more_ranges": max(0, len(ranges) - _MOST_RANGES),
        }

    def first_pending(self, log_tp: TP) -> int | None:
        """Lowest offset of a log of record that may still have to be brought; None: none has.

        0 when the ledger of the partition is another worker's: any record may be in it.
        """
        topic = parse(log_tp.topic)[0]
        lane = self._lanes.get(TP(topic.validated, log_tp.partition))
        if lane is None:
            return 0
        place = LogPlace(self._epoch_of(topic.log), topic.log, log_tp.partition)
        return min((shed.first for shed in lane.ledger.pending(place)), default=None)

    def _is_there(self, place: LogPlace) -> bool:
        """False for a log of record that was made anew: what was put off in it is gone with it."""
        return place.epoch == self._epoch_of(place.topic)

    def _tell_lost(self, ledger: Ledger) -> None:
        for place in ledger.places():
            if not self._is_there(place):
                count = sum(shed.count for shed in ledger.pending(place))
                log.error("shed_lost_with_its_log", records=count, **place._asdict())

    @staticmethod
    def _keep(lane: _Lane, entries: Iterable[Entry | None]) -> None:
        for entry in entries:
            if entry is not None:
                lane.written[entry[0]] = entry[1]

    async def _store(self, tp: TP, lane: _Lane) -> None:
        # The position is taken with the entries noted up to it: later, never ahead of them.
        position = msgspec.msgpack.encode(_Position(lane.next_offset, dict(lane.cover.applied)))
        written, lane.written = lane.written, {}
        to, lane.stored_s = lane.next_offset, self._clock.monotonic_s()
        try:
            # Not together: a log may take the one and refuse the others.
            if written:
                await self._table.store(tp, list(written.items()))
            await self._table.store(tp, [(_POSITION, position)])
        except BaseException:
            # Whoever comes next, after a wait cut short, must not pass what may not be there.
            lane.written = written | lane.written
            raise
        lane.durable = max(lane.durable, to)

    async def _bring(self) -> None:
        for tp, lane in list(self._lanes.items()):
            for place in filter(self._is_there, lane.ledger.places()):
                for span in plan(lane.ledger, place, self._level()):
                    await self._bring_span(tp, lane, place, span)

    async def _bring_span(self, tp: TP, lane: _Lane, place: LogPlace, span: Span) -> None:
        """Read one stretch of the log of record again and emit what was put off in it."""
        source = TP(place.topic, place.partition)
        earliest, _ = (await self._readers.bounds([source]))[source]
        if span.first < earliest:
            await self._lose(tp, lane, place, min(span.last, earliest - 1))
        if span.last < earliest:
            return
        try:
            await self._read(tp, lane, place, Span(max(span.first, earliest), span.last))
        except RetentionGapError as exc:
            # The next turn looks at the bounds again.
            log.warning("shed_overtaken", error=exc.message, **exc.details)

    async def _read(self, tp: TP, lane: _Lane, place: LogPlace, span: Span) -> None:
        reader = self._readers.create_reader()
        try:
            await reader.start({TP(place.topic, place.partition): span.first})
            while self._wanted(tp, lane) and lane.ledger.through(place) < span.last:
                for batch in await reader.getmany(_POLL_S):
                    await self._emit(tp, lane, place, span, batch)
        finally:
            await reader.stop()
        log.info(
            "shed_brought",
            topic=place.topic,
            partition=place.partition,
            through=lane.ledger.through(place),
            **span._asdict(),
        )

    async def _lose(self, tp: TP, lane: _Lane, place: LogPlace, until: int) -> None:
        """Give up what the log of record no longer has, through offset `until`."""
        through = lane.ledger.through(place)
        group, records = lost(
            lane.ledger.pending(place),
            topic=parse(place.topic)[0],
            place=place,
            through=through,
            until=until,
            cut=self._cut,
        )
        # Readers of the deferred topic need it: what comes after must abut.
        await asyncio.gather(*(self._producer.send_batch(batch) for batch in group))
        self._keep(lane, lane.ledger.resolved(place, until))
        await self._store(tp, lane)
        metrics.SHED_LOST.labels(place.topic).inc(records)
        log.error(
            "shed_lost_by_retention",
            records=records,
            first=through + 1,
            last=until,
            remedy="keep records longer (retention of the log of record), or end overload sooner",
            **place._asdict(),
        )

    def _wanted(self, tp: TP, lane: _Lane) -> bool:
        """False once there is overload again, or the partition has left or was assigned anew."""
        return self._level() == Level.NORMAL and self._lanes.get(tp) is lane

    async def _emit(
        self, tp: TP, lane: _Lane, place: LogPlace, span: Span, batch: LogBatch
    ) -> None:
        groups, through = emit_deferred(
            batch,
            lane.ledger.pending(place),
            topic=parse(place.topic)[0],
            epoch=place.epoch,
            through=lane.ledger.through(place),
            last=span.last,
            cut=self._cut,
        )
        await asyncio.gather(*(self._producer.send_batch(group) for group in groups))
        self.brought += sum(1 for group in groups for value in group.values if value is not None)
        self._keep(lane, lane.ledger.resolved(place, through))
        await self._store(tp, lane)


def earliest_of(*positions: Mapping[TP, int]) -> dict[TP, int]:
    """Where a consumer that serves several readers starts: where the one furthest behind does.

    A partition absent from one of them starts at the topic's beginning.
    """
    shared = set(positions[0]).intersection(*positions[1:])
    return {tp: min(found[tp] for found in positions) for tp in shared}
