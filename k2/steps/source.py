"""Source: exchange sessions to logs of record, on the workers that own the sessions' partitions.

Guarantee: frames of a session reach the log in order; a frame that cannot be mapped becomes a dead
letter; a batch the log refuses stops the worker, since records after it would hide the loss.
What was lost before the log is disclosed as gaps by validation.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from k2 import metrics
from k2.clock import Clock
from k2.setting_feeds import Feed
from k2.sources.contract import Exchange, FrameMapper, Mapped, Received
from k2.sources.open import new_session
from k2.sources.plan import SessionSpec
from k2.sources.refused import Refused
from k2.sources.session import Session
from k2.steps.dead_letters import DeadLetters
from k2.steps.publish import Publisher, partition_of
from k2.steps.raw import RawFrames
from k2.tracing import TRACING
from k2.transport.single import failure

log = structlog.get_logger(__name__)

#: Frames mapped at once: more hold the event loop longer than 10 ms.
_FRAMES = 1_000
#: So many at once may be followed by a turn for the others.
_FEW_FRAMES = 200
#: After fewer frames than this the next ones wait for company.
_MANY_FRAMES = 600
_LINGER_S = 0.008
#: … and longer when the loop is busy for this share of the time: twice as long as it worked since
#: the frames before, up to so many seconds, so that a slow machine, or one with many partitions,
#: makes larger batches instead of falling behind.
_BUSY_SHARE = 0.4
_BUSY_LINGER = (2.0, 0.06)
#: The same while somebody waits for rows of the lake: the processor is left to the answer.
_ASKED_LINGER = (4.0, 0.15)
#: Longest turn for the others: frames that wait too long are the exchange's reason to disconnect.
_LONGEST_TURN_S = 0.25
_SHORTEST_TURN_S = 0.005
_RATE_S = 5.0
#: Batches on their way to the log before the next frames are taken, and the records in them: what
#: the log does not have yet, nobody can judge or see.
_IN_FLIGHT = 256
_RECORDS_IN_FLIGHT = 10_000


@dataclass(slots=True)
class SourceCounts:
    """What the sessions of this worker brought; frames include those refused or ignored."""

    frames: int = 0
    trades: int = 0
    quotes: int = 0
    agg_trades: int = 0
    refused: int = 0
    ignored: int = 0
    control: int = 0


@dataclass(frozen=True, slots=True)
class SourceFeed:
    """One exchange of this platform: how to talk to it, and where its records go, by data type."""

    exchange: Exchange
    settings: Feed
    publishers: Mapping[str, Publisher]
    dead_letters: DeadLetters
    #: None: frames are not kept.
    raw: RawFrames | None = None


class _Rate:
    """Frames a second over about the last `_RATE_S` seconds."""

    def __init__(self) -> None:
        self.per_s = 0.0
        self._at_s: float | None = None
        self._count = 0

    def note(self, count: int, now_s: float) -> None:
        if self._at_s is not None and now_s > self._at_s:
            now_per_s = (count - self._count) / (now_s - self._at_s)
            weight = min(1.0, (now_s - self._at_s) / _RATE_S)
            self.per_s += (now_per_s - self.per_s) * weight
        self._at_s, self._count = now_s, count


class Pace:
    """How long frames wait for company."""

    def __init__(
        self, clock: Clock, busy_s: Callable[[], float], asked: Callable[[], bool]
    ) -> None:
        self._clock, self._busy_s, self._asked = clock, busy_s, asked
        self._at_s, self._worked_s = clock.monotonic_s(), busy_s()

    def linger_s(self) -> float:
        """After the frames just handed on."""
        at_s, worked_s = self._clock.monotonic_s(), self._busy_s()
        passed_s, busy_s = at_s - self._at_s, worked_s - self._worked_s
        self._at_s, self._worked_s = at_s, worked_s
        if busy_s < _BUSY_SHARE * passed_s:
            return _LINGER_S
        per_busy_s, longest_s = _ASKED_LINGER if self._asked() else _BUSY_LINGER
        return min(max(_LINGER_S, per_busy_s * busy_s), longest_s)


@dataclass(slots=True)
class _Running:
    feed: SourceFeed
    spec: SessionSpec
    session: Session
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    #: What is on its way to the log: about how many records each batch has.
    pending: dict[asyncio.Future[int], float] = field(default_factory=dict)
    #: Frames that were taken from the session and are not all handed to the log.
    in_hand: int = 0
    #: Reconnects by reason that the metrics have.
    reconnects: Counter[str] = field(default_factory=Counter)
    rate: _Rate = field(default_factory=_Rate)


class SourceStep:
    """The sessions this worker runs."""

    def __init__(
        self,
        feeds: Sequence[SourceFeed],
        clock: Clock,
        *,
        partitions: int,
        max_record_bytes: int,
        on_error: Callable[[BaseException], None],
        behind: Callable[[], bool] = lambda: False,
        busy_s: Callable[[], float] = time.thread_time,
        asked: Callable[[], bool] = lambda: False,
    ) -> None:
        """`behind`: true while the steps after this one, on this worker, have much to catch up.

        `busy_s`: seconds the event loop has worked so far. `asked`: a query needs a thread now.
        """
        self.counts = SourceCounts()
        self._behind = behind
        self._busy_s, self._asked = busy_s, asked
        self._feeds = feeds
        self._clock = clock
        self._partitions = partitions
        self._max_record_bytes = max_record_bytes
        self._on_error = on_error
        self._running: dict[str, _Running] = {}
        self._changing = asyncio.Lock()
        #: Held while a session hands frames on and gives way: several give way together.
        self._turn = asyncio.Lock()

    def specs(self) -> list[SessionSpec]:
        """Every session of the configuration."""
        return [spec for _, spec in self._planned()]

    def _planned(self) -> list[tuple[SourceFeed, SessionSpec]]:
        return [
            (feed, spec)
            for feed in self._feeds
            if feed.settings.enabled
            for spec in feed.exchange.sessions(feed.settings)
        ]

    async def own(self, partitions: Collection[int]) -> None:
        """Run exactly the sessions whose key falls into `partitions` of the sessions topic."""
        async with self._changing:
            wanted = {
                spec.key: (feed, spec)
                for feed, spec in self._planned()
                if partition_of(spec.key.encode(), self._partitions) in partitions
            }
            gone = [running for key, running in self._running.items() if key not in wanted]
            await asyncio.gather(*(self._stop(running) for running in gone))
            for key, (feed, spec) in wanted.items():
                if key not in self._running:
                    self._running[key] = self._start(feed, spec)

    async def stop(self) -> None:
        """Close every session; returns when what was received is in the log."""
        await self.own(())

    @property
    def queued(self) -> int:
        """Frames received and not yet handed to the log."""
        return sum(running.session.queued + running.in_hand for running in self._running.values())

    @property
    def in_flight(self) -> int:
        """Batches handed to the log and not yet acknowledged."""
        return sum(
            sum(not future.done() for future in running.pending)
            for running in self._running.values()
        )

    @property
    def records_in_flight(self) -> int:
        """Records handed to the log and not yet acknowledged, about."""
        return round(
            sum(
                records
                for running in self._running.values()
                for future, records in running.pending.items()
                if not future.done()
            )
        )

    def running(self) -> list[tuple[SourceFeed, SessionSpec]]:
        """The sessions this worker runs, each with its exchange."""
        return [(running.feed, running.spec) for running in self._running.values()]

    def sessions(self) -> list[dict[str, object]]:
        """State of each session, for status and health."""
        return [
            {
                "session": key,
                "exchange": running.feed.exchange.name,
                "state": running.session.stats.state,
                "url": running.session.stats.url,
                "symbols": list(running.spec.symbols),
                "frames": running.session.stats.frames,
                "frames_per_s": round(running.rate.per_s, 1),
                "reconnects": dict(running.session.stats.reconnects),
                "last_frame_us": running.session.stats.last_frame_us,
                "last_error": running.session.stats.last_error,
            }
            for key, running in self._running.items()
        ]

    def _start(self, feed: SourceFeed, spec: SessionSpec) -> _Running:
        settings = feed.settings
        session = new_session(
            feed.exchange, spec, settings, self._clock, max_frame_bytes=self._max_record_bytes
        )
        running = _Running(feed, spec, session)
        for work in (session.run(), self._pump(running)):
            task = asyncio.create_task(work)
            task.add_done_callback(self._observe)
            running.tasks.append(task)
        log.info("session_started", session=spec.key, symbols=len(spec.symbols))
        return running

    async def _stop(self, running: _Running) -> None:
        await running.session.close()
        await asyncio.gather(*running.tasks, return_exceptions=True)
        del self._running[running.spec.key]
        _forget(running)
        log.info("session_stopped", session=running.spec.key)

    def _observe(self, done: asyncio.Future[Any]) -> None:
        """What a task ended with, or the log refused, ends the worker."""
        if (error := failure(done)) is not None:
            self._on_error(error)

    async def _pump(self, running: _Running) -> None:
        """Frames of one session to the log, in order, until the session is closed and empty."""
        session, feed = running.session, running.feed
        mapper = feed.exchange.mapper(running.spec, feed.settings)
        # Ids lost between two runs of a session are unknown to us: continuity must not take the
        # first id of a run for the successor of the last one of the run before.
        process = uuid.uuid4().hex
        # Every line this task causes says whose frames it was about.
        structlog.contextvars.bind_contextvars(session=running.spec.key, run=process[:8])
        pace = Pace(self._clock, self._busy_s, self._asked)
        while frames := await session.batch(_FRAMES):
            running.in_hand = len(frames)
            async with self._turn:
                began_s = self._clock.monotonic_s()
                await self._hand_on(running, mapper, frames, f"{process}-{session.run_number}")
                if len(frames) >= _FEW_FRAMES:
                    await self._give_way(self._clock.monotonic_s() - began_s)
            running.pending = await self._settle(running.pending)
            # Every step behind us works per batch: frames that come one by one are cheaper, and so
            # earlier in an answer, when a few travel together. With more frames waiting nothing
            # above need have waited at all: without this turn for the others a full queue would be
            # emptied in one go, and validation, sink and queries would stand still meanwhile.
            await asyncio.sleep(0 if len(frames) >= _MANY_FRAMES else pace.linger_s())
        await asyncio.gather(*running.pending, *self._refuse(feed, session.take_refused()))

    async def _give_way(self, took_s: float) -> None:
        """Leave the time to the others while they are behind, but not for long.

        One turn of the loop is little to steps that need dozens for a batch, and a turn as long as
        the frames took leaves them half: a feed far above what the worker can take would push what
        queries see further and further behind.
        """
        until_s = self._clock.monotonic_s() + _LONGEST_TURN_S
        while self._behind() and (left_s := until_s - self._clock.monotonic_s()) > 0:
            await self._clock.sleep(min(max(took_s, _SHORTEST_TURN_S), left_s))

    async def _hand_on(
        self, running: _Running, mapper: FrameMapper, frames: list[Received], run: str
    ) -> None:
        feed = running.feed
        sent: set[asyncio.Future[int]] = set()
        if feed.raw is not None:
            sent.update(feed.raw.send(running.spec.key, frames))
        with TRACING.span("k2.source", exchange=feed.exchange.name, frames=len(frames)) as context:
            mapped = mapper.map(frames, ingestion_us=self._clock.now_us())
            for data_type, batch in mapped.batches():
                if not self._behind():  # then the others have a turn of their own
                    # Answers are given on this loop too: they need not wait for all of this.
                    await asyncio.sleep(0)
                sent.update(feed.publishers[data_type].publish(batch, run, context))
        refused = [*mapped.refused, *running.session.take_refused()]
        sent |= self._refuse(feed, refused)
        for future in sent:
            # At once: the next frame of a quiet session may be long in coming.
            future.add_done_callback(self._observe)
        running.pending |= {future: len(frames) / len(sent) for future in sent}
        running.in_hand = 0
        self._count(running, mapped, len(frames))

    def _refuse(self, feed: SourceFeed, refused: list[Refused]) -> set[asyncio.Future[int]]:
        if not refused:
            return set()
        for entry in refused:
            metrics.FEED_ERRORS.labels(feed.exchange.name, entry.reason).inc()
        self.counts.refused += len(refused)
        log.warning("frames_refused", count=len(refused), reason=refused[0].reason)
        return set(feed.dead_letters.frames(refused))

    async def _settle(
        self, pending: dict[asyncio.Future[int], float]
    ) -> dict[asyncio.Future[int], float]:
        """Drop what the log acknowledged; wait while too much is on its way."""
        pending = self._unfinished(pending)
        while len(pending) > _IN_FLIGHT or sum(pending.values()) > _RECORDS_IN_FLIGHT:
            await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            pending = self._unfinished(pending)
        return pending

    def _unfinished(
        self, pending: dict[asyncio.Future[int], float]
    ) -> dict[asyncio.Future[int], float]:
        for future in pending:
            if future.done():
                future.result()  # raises what the log refused
        return {future: records for future, records in pending.items() if not future.done()}

    def _count(self, running: _Running, mapped: Mapped, frames: int) -> None:
        counts = self.counts
        counts.frames += frames
        counts.trades += 0 if mapped.trades is None else mapped.trades.num_rows
        counts.quotes += 0 if mapped.quotes is None else mapped.quotes.num_rows
        counts.agg_trades += 0 if mapped.agg_trades is None else mapped.agg_trades.num_rows
        counts.ignored += sum(mapped.ignored.values())
        counts.control += mapped.control
        metrics.FEED_MESSAGES.labels(running.feed.exchange.name, running.spec.key).inc(frames)

    def observe(self) -> None:
        """Set the gauges of the sessions; also of those that bring nothing."""
        for running in self._running.values():
            stats = running.session.stats
            running.rate.note(stats.frames, self._clock.monotonic_s())
            labels = (running.feed.exchange.name, running.spec.key)
            metrics.FEED_CONNECTION_STATUS.labels(*labels).set(stats.connected)
            metrics.FEED_LAST_MESSAGE.labels(*labels).set(stats.last_frame_us / 1e6)
            metrics.FEED_LAST_PONG.labels(*labels).set(stats.last_pong_us / 1e6)
            metrics.FEED_RECONNECT_DELAY.labels(*labels).set(stats.backoff_s)
            for reason, count in stats.reconnects.items():
                new = count - running.reconnects[reason]
                metrics.FEED_RECONNECTS.labels(*labels, reason).inc(new)
                running.reconnects[reason] = count


def _forget(running: _Running) -> None:
    """Take back the gauges of a session that has stopped here: the last ones would hide, here, that
    it is not connected on the worker that has it now."""
    labels = (running.feed.exchange.name, running.spec.key)
    for gauge in (
        metrics.FEED_CONNECTION_STATUS,
        metrics.FEED_LAST_MESSAGE,
        metrics.FEED_LAST_PONG,
        metrics.FEED_RECONNECT_DELAY,
    ):
        gauge.remove(*labels)
    metrics.HEALTH.remove(f"feed {running.spec.key}")
