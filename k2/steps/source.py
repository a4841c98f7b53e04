"""Source: exchange sessions to logs of record, on the workers that own the sessions' partitions.

Guarantee: frames of a session reach the log in order; a frame that cannot be mapped becomes a dead
letter; a batch the log refuses stops the worker, since records after it would hide the loss.
What was lost before the log is disclosed as gaps by validation.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import structlog

from k2 import metrics
from k2.clock import Clock
from k2.settings import Binance
from k2.sources.binance import BinanceMapper, Mapped
from k2.sources.binance_protocol import BinanceProtocol
from k2.sources.connector import AiohttpConnector
from k2.sources.link import LinkLimits
from k2.sources.plan import SessionSpec, plan_sessions
from k2.sources.refused import Refused
from k2.sources.session import Session, SessionConfig
from k2.steps.dead_letters import DeadLetters
from k2.steps.publish import Publisher, partition_of

log = structlog.get_logger(__name__)

#: Frames mapped at once: more hold the event loop longer than 10 ms.
_FRAMES = 1_000
#: After fewer frames than this the next ones wait for company.
_FEW_FRAMES = 200
_LINGER_S = 0.008
#: Batches on their way to the log before the next frames are taken.
_IN_FLIGHT = 256


@dataclass(slots=True)
class SourceCounts:
    """What the sessions of this worker brought; frames include those refused or ignored."""

    frames: int = 0
    trades: int = 0
    quotes: int = 0
    refused: int = 0
    ignored: int = 0


@dataclass(slots=True)
class _Running:
    spec: SessionSpec
    session: Session
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    pending: set[asyncio.Future[int]] = field(default_factory=set)


class SourceStep:
    """The sessions this worker runs."""

    def __init__(
        self,
        settings: Binance,
        publishers: Mapping[str, Publisher],
        dead_letters: DeadLetters,
        clock: Clock,
        *,
        partitions: int,
        max_record_bytes: int,
        on_error: Callable[[BaseException], None],
    ) -> None:
        self.counts = SourceCounts()
        self._settings = settings
        self._publishers = publishers
        self._dead_letters = dead_letters
        self._clock = clock
        self._partitions = partitions
        # A record is hardly larger than its frame: a frame that no batch of the log can hold is
        # refused at the socket.
        self._max_frame_bytes = min(settings.max_frame_bytes, max_record_bytes)
        self._on_error = on_error
        self._running: dict[str, _Running] = {}
        self._changing = asyncio.Lock()

    def specs(self) -> list[SessionSpec]:
        """Every session of the configuration."""
        if not self._settings.enabled:
            return []
        return plan_sessions(
            self._settings.symbols,
            self._settings.streams,
            per_session=self._settings.symbols_per_session,
        )

    async def own(self, partitions: Collection[int]) -> None:
        """Run exactly the sessions whose key falls into `partitions` of the sessions topic."""
        async with self._changing:
            wanted = {
                spec.key: spec
                for spec in self.specs()
                if partition_of(spec.key.encode(), self._partitions) in partitions
            }
            gone = [running for key, running in self._running.items() if key not in wanted]
            await asyncio.gather(*(self._stop(running) for running in gone))
            for key, spec in wanted.items():
                if key not in self._running:
                    self._running[key] = self._start(spec)

    async def stop(self) -> None:
        """Close every session; returns when what was received is in the log."""
        await self.own(())

    @property
    def queued(self) -> int:
        """Frames received and not yet handed to the log."""
        return sum(running.session.queued for running in self._running.values())

    @property
    def in_flight(self) -> int:
        """Batches handed to the log and not yet acknowledged."""
        return sum(
            sum(not future.done() for future in running.pending)
            for running in self._running.values()
        )

    def sessions(self) -> list[dict[str, object]]:
        """State of each session, for status and health."""
        return [
            {
                "session": key,
                "state": running.session.stats.state,
                "url": running.session.stats.url,
                "symbols": list(running.spec.symbols),
                "frames": running.session.stats.frames,
                "reconnects": dict(running.session.stats.reconnects),
                "last_frame_us": running.session.stats.last_frame_us,
                "last_error": running.session.stats.last_error,
            }
            for key, running in self._running.items()
        ]

    def _start(self, spec: SessionSpec) -> _Running:
        session = Session(
            BinanceProtocol(spec.streams),
            _session_config(self._settings, self._max_frame_bytes),
            AiohttpConnector(
                ssl_verify=self._settings.ssl_verify, ca_bundle=self._settings.custom_ca_bundle
            ),
            name=spec.key,
            clock=self._clock,
        )
        running = _Running(spec, session)
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
        log.info("session_stopped", session=running.spec.key)

    def _observe(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_error(error)

    async def _pump(self, running: _Running) -> None:
        """Frames of one session to the log, in order, until the session is closed and empty."""
        session, spec = running.session, running.spec
        mapper = BinanceMapper(spec.symbols, self._settings.streams)
        # Ids lost between two runs of a session are unknown to us: continuity must not take the
        # first id of a run for the successor of the last one of the run before.
        process = uuid.uuid4().hex
        while frames := await session.batch(_FRAMES):
            mapped = mapper.map(frames, ingestion_us=self._clock.now_us())
            running.pending |= self._publish(mapped, f"{process}-{session.run_number}")
            running.pending |= self._refuse([*mapped.refused, *session.take_refused()])
            self._count(mapped, len(frames), session)
            running.pending = await self._settle(running.pending)
            if len(frames) < _FEW_FRAMES:
                # Every step behind us works per batch: frames that come one by one are cheaper, and
                # so earlier in an answer, when a few travel together.
                await asyncio.sleep(_LINGER_S)
        await asyncio.gather(*running.pending, *self._refuse(session.take_refused()))

    def _publish(self, mapped: Mapped, run: str) -> set[asyncio.Future[int]]:
        futures: set[asyncio.Future[int]] = set()
        for kind, batch in (("trades", mapped.trades), ("quotes", mapped.quotes)):
            if batch is not None:
                futures.update(self._publishers[kind].publish(batch, run))
        return futures

    def _refuse(self, refused: list[Refused]) -> set[asyncio.Future[int]]:
        if not refused:
            return set()
        for entry in refused:
            metrics.BINANCE_ERRORS.labels(entry.reason).inc()
        self.counts.refused += len(refused)
        log.warning("frames_refused", count=len(refused), reason=refused[0].reason)
        return set(self._dead_letters.frames(refused))

    async def _settle(self, pending: set[asyncio.Future[int]]) -> set[asyncio.Future[int]]:
        """Drop what the log acknowledged; wait while too much is on its way."""
        while len(pending) > _IN_FLIGHT:
            await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            pending = self._unfinished(pending)
        return self._unfinished(pending)

    def _unfinished(self, pending: set[asyncio.Future[int]]) -> set[asyncio.Future[int]]:
        for future in pending:
            if future.done():
                future.result()  # raises what the log refused
        return {future for future in pending if not future.done()}

    def _count(self, mapped: Mapped, frames: int, session: Session) -> None:
        counts, stats = self.counts, session.stats
        counts.frames += frames
        counts.trades += 0 if mapped.trades is None else mapped.trades.num_rows
        counts.quotes += 0 if mapped.quotes is None else mapped.quotes.num_rows
        counts.ignored += sum(mapped.ignored.values())
        metrics.BINANCE_MESSAGES.labels(session.name).inc(frames)
        metrics.BINANCE_CONNECTION_STATUS.labels(session.name).set(stats.connected)
        metrics.BINANCE_LAST_MESSAGE.labels(session.name).set(stats.last_frame_us / 1e6)
        metrics.BINANCE_LAST_PONG.labels(session.name).set(stats.last_pong_us / 1e6)
        metrics.BINANCE_RECONNECT_DELAY.labels(session.name).set(stats.backoff_s)


def _session_config(settings: Binance, max_frame_bytes: int) -> SessionConfig:
    return SessionConfig(
        urls=(settings.url, *settings.failover_urls),
        reconnect_initial_s=settings.reconnect_initial_s,
        reconnect_max_s=settings.reconnect_max_s,
        max_lifetime_s=settings.max_lifetime_h * 3_600,
        queue_frames=settings.queue_frames,
        limits=LinkLimits(
            ping_interval_s=settings.ping_interval_s,
            ping_timeout_s=settings.ping_timeout_s,
            stale_after_s=settings.stale_after_s,
            subscribe_per_s=settings.subscribe_per_s,
            max_frame_bytes=max_frame_bytes,
        ),
    )
