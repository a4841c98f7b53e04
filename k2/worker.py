"""What a worker is made of, put together when it starts and taken apart in order when it stops."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
from collections.abc import Coroutine, Sequence
from typing import Any

import structlog
from faust.types import TP

from k2 import __version__, memory, metrics
from k2.api_context import api_context
from k2.catalogue import topic_specs
from k2.clock import SYSTEM_CLOCK
from k2.cluster import summary_of
from k2.codec.schemas import kind_of
from k2.codecs import Codecs, open_registry
from k2.degradation.levels import Level
from k2.degradation.memory import MemoryGauge
from k2.errors import K2Error, LakeError
from k2.faultpoints import Point, reached
from k2.faust_app import K2App
from k2.hot import HotSide
from k2.lake.tables import CANDLES
from k2.lakehouse import Lakehouse, breakers_of, keepers
from k2.looplag import LoopWatch
from k2.pipeline.gap_report import EVENTS_SQL, MAX_EVENTS, Gap, gaps_of
from k2.pipeline.groups import Cut
from k2.query.neighbours import time_below
from k2.settings import Settings
from k2.status import StatusBoard
from k2.steps.backfill import BackfillStep
from k2.steps.control import ControlStep
from k2.steps.dead_letters import DeadLetters
from k2.steps.feeds import feeds_of
from k2.steps.lanes import Lanes
from k2.steps.maintain import MaintainStep
from k2.steps.publish import Partitioner, Publisher
from k2.steps.raw import RawFrames
from k2.steps.shed import ShedStep, earliest_of
from k2.steps.sink import SinkStep
from k2.steps.source import SourceStep
from k2.steps.tables import FaustCheckpoints, SharedTable, Tables
from k2.steps.validate import ValidateStep
from k2.stopping import DRAIN_S, HANDOVER_S, Part, close_all
from k2.topics import DEGRADATION_CONTROL, DEGRADATION_EVENTS, MAINTENANCE, MarketTopic, parse
from k2.tracing import TRACING
from k2.transport.registry import registry
from k2.transport.single import Messages
from k2.vitals import Vitals
from k2.web.api import build_api
from k2.web.mount import mount
from k2.web.port import check_port

log = structlog.get_logger(__name__)

#: Seconds between two looks at what is still under way, and the least there are to hand over.
_POLL_S = 0.05
_LEAST_S = 0.5


class Worker:
    """The parts, by the order in which data meets them."""

    def __init__(self, app: K2App, settings: Settings, tables: Tables) -> None:
        self._commits = asyncio.Lock()
        self.app = app
        self.settings = settings
        self.clock = SYSTEM_CLOCK
        self._tables = tables
        self.ready = False
        self._checkpoints = FaustCheckpoints(tables.continuity)
        self._shed_table = FaustCheckpoints(tables.shed)
        self._tasks: list[asyncio.Task[None]] = []
        self.failure: BaseException | None = None
        self._opened = self._closing = False
        #: When a stop has to be through with log and lake; None while the worker runs.
        self._stop_by_s: float | None = None

    @property
    def sink_topics(self) -> list[str]:
        """What the sink reads."""
        return [
            name
            for topic in self.settings.topics
            for name in (topic.validated, topic.gaps, topic.deferred)
        ]

    @property
    def candle_topics(self) -> list[str]:
        """What candles are folded from; the sink reads the same."""
        return [
            name
            for topic in self.settings.topics
            if topic.data_type == "trades"
            for name in (topic.validated, topic.deferred)
        ]

    def level(self) -> int:
        """The degradation level all workers agree on."""
        return int(self.control.level)

    async def open(self) -> None:
        """Open log, registry and lake; raises `K2Error` naming what is not usable."""
        settings, transport = self.settings, self.app.transport
        check_port(settings.api.host, settings.api.port)
        TRACING.start(settings.tracing)
        # Faust makes its own directory in there, but not the ones above it.
        settings.core.data_dir.mkdir(parents=True, exist_ok=True)
        await transport.ensure_topics(topic_specs(settings))
        self.epochs: dict[str, str] = await transport.epochs(
            [topic.log for topic in settings.topics]
        )
        self.breakers = breakers_of(settings, self.clock)
        registry = open_registry(settings, self.breakers.registry)
        self.codecs = await asyncio.to_thread(Codecs.open, registry, settings.topics)
        self.lake = await asyncio.to_thread(Lakehouse.open, settings, self.clock, self.breakers)
        parts = (settings, transport, self.lake, self.codecs, self.clock)
        self.hot = HotSide(*parts, self.breakers.queries, self._tables.reference)
        self.status = StatusBoard(self)
        self.control = self._control()
        self.source = self._source()
        self.backfill = BackfillStep(
            self.source.running,
            self._gaps,
            self.clock,
            time_below(self.hot.engine),
            self.breakers.history,
        )
        self.shed = self._shed()
        self.validate = self._validate()
        self.sink = self._sink()
        self.candles = self._candles()
        self.maintain = MaintainStep(
            settings.maintain,
            keepers(self.lake.catalog, settings),
            self._may_maintain,
            self.clock,
            # Maintenance can wait, rows cannot.
            calm=lambda: self.control.here < Level.GRACEFUL,
        )
        self._register()
        mount(self.app, build_api(api_context(self)))
        metrics.PLATFORM.info({"version": __version__, "environment": settings.core.environment})
        self._opened = True

    def _may_maintain(self) -> bool:
        """Elected, and the lake is well."""
        elected = TP(MAINTENANCE, 0) in self.app.consumer.assignment()
        return elected and self.breakers.lake_ready

    def epoch_of(self, topic: str) -> str:
        """The incarnation of the log of record behind a topic."""
        return self.epochs[parse(topic)[0].log]

    async def _gaps(self) -> list[Gap]:
        """Gaps as the lake knows them; none while it does not answer."""
        try:
            found = await self.hot.engine.sql(EVENTS_SQL, limit=MAX_EVENTS)
        except K2Error as exc:
            log.warning("gaps_unknown", error=exc.message)
            return []
        return gaps_of(found.rows.to_pylist())

    def _control(self) -> ControlStep:
        def messages(topic: str) -> Messages:
            return Messages(self.app.topic(topic, value_serializer="json"), self.crash)

        return ControlStep(
            self.settings.degradation,
            SharedTable(self._tables.degradation, self.crash),
            messages(DEGRADATION_CONTROL).send,
            lambda: self.status.waiting,
            self.clock,
            worker_id=f"{socket.gethostname()}-{os.getpid()}",
            announce=messages(DEGRADATION_EVENTS).send,
            moves_records=bool({"source", "validate", "sink"} & set(self.settings.core.roles)),
            ease=self.hot.engine.ease,
            summary=functools.partial(summary_of, self),
        )

    def _source(self) -> SourceStep:
        settings, producer = self.settings, self.app.producer
        partitions, max_bytes = settings.kafka.partitions, settings.kafka.max_batch_bytes // 2
        partitioner = Partitioner(partitions)

        def publisher(topic: MarketTopic) -> Publisher:
            codec = self.codecs.of(topic.log)
            return Publisher(topic, producer, codec, partitioner, self.clock, max_bytes)

        def dead_letters(topic: MarketTopic) -> DeadLetters:
            return DeadLetters(topic, producer, self.codecs.of(topic.dlq), max_bytes)

        def raw(topic: MarketTopic) -> RawFrames:
            return RawFrames(topic, producer, partitioner, max_bytes)

        return SourceStep(
            feeds_of(settings, publisher, dead_letters, raw),
            self.clock,
            partitions=partitions,
            max_record_bytes=max_bytes,
            on_error=self.crash,
            behind=lambda: self.status.overrun,
            asked=lambda: self.hot.engine.stats().running > 0,
        )

    def _validate(self) -> ValidateStep:
        lanes = Lanes(
            self.settings,
            self.codecs,
            self.lake,
            self.epoch_of,
            self.clock,
            first_pending=self.shed.first_pending,
        )
        return ValidateStep(
            lanes,
            self._checkpoints,
            self.app.producer,
            self.level,
            self.clock,
            checkpoint_s=self.settings.validate_.checkpoint_s,
            quality=self.hot.quality,
            statements=self.hot.statements,
        )

    def _shed(self) -> ShedStep:
        settings = self.settings
        return ShedStep(
            self._shed_table,
            self.app.producer,
            self.app.transport,
            self.epoch_of,
            lambda: int(self.control.bringing),
            self.clock,
            Cut(settings.validate_.group_records, settings.kafka.max_batch_bytes),
        )

    def _sink(self) -> SinkStep:
        return SinkStep(
            {name: kind_of(name) for name in self.sink_topics},
            self.lake.writers,
            self.lake.buffers(),
            {
                name: self.codecs.reader(name, self.lake.added[kind_of(name)])
                for name in self.sink_topics
            },
            self.epoch_of,
            self.clock,
            self.crash,
            turn=self._commits,
        )

    def _candles(self) -> SinkStep:
        names = self.candle_topics
        return SinkStep(
            dict.fromkeys(names, CANDLES.name),
            {CANDLES.name: self.lake.candles},
            {CANDLES.name: self.lake.candle_buffer()},
            {name: self.codecs.candle_reader(name) for name in names},
            self.epoch_of,
            self.clock,
            self.crash,
            name="candles",
            turn=self._commits,
        )

    def _register(self) -> None:
        """Where consumers of state start, and what is flushed before partitions leave."""
        known = registry(self.app)
        for topic in self.settings.topics:
            known.positions.register(
                topic.log, self.validate.positions, commit_ceiling=self.validate.ceiling
            )
        for name in self.sink_topics:
            known.positions.register(
                name,
                functools.partial(self._positions, self._readers(name)),
                commit_ceiling=functools.partial(self._ceiling, self._readers(name)),
            )
        known.before_revoke.append(self._before_revoke)
        known.handover_s = self._handover_s
        self.app.on_partitions_assigned.connect(self._keep_assigned, weak=False)

    async def _keep_assigned(self, _app: Any, assigned: set[TP], **_: Any) -> None:
        """What has moved to another worker is neither counted nor written here any more."""
        metrics.REBALANCES.inc()
        self.validate.keep(assigned)
        self.shed.keep(assigned)
        self.sink.keep(assigned)
        self.candles.keep(assigned)
        if TP(DEGRADATION_CONTROL, 0) not in assigned:
            self.control.forget()

    def _readers(self, topic: str) -> list[SinkStep | ShedStep]:
        """Who reads the same messages of a topic; each drops what it has."""
        noted = [self.shed] if topic.endswith(".validated") else []
        folded = [self.candles] if topic in self.candle_topics else []
        return [self.sink, *noted, *folded]

    async def _positions(
        self, readers: Sequence[SinkStep | ShedStep], tps: frozenset[TP]
    ) -> dict[TP, int]:
        return earliest_of(*[await reader.positions(tps) for reader in readers])

    def _ceiling(self, readers: Sequence[SinkStep | ShedStep], tp: TP) -> int | None:
        known = [at for reader in readers if (at := reader.ceiling(tp)) is not None]
        return min(known) if len(known) == len(readers) else None

    async def _before_revoke(self, leaving: frozenset[TP]) -> None:
        """Store what is held of partitions that leave; bounded, for everybody waits meanwhile.

        What does not get into the lake in time is read again by whoever has it next.
        """
        reached(Point.BEFORE_REVOKE)
        if self.crashed:
            return
        limit_s = self._handover_s()
        try:
            async with asyncio.timeout(limit_s):
                await self.validate.checkpoint_all()
                await self.shed.store()
                await asyncio.gather(self.sink.revoke(leaving), self.candles.revoke(leaving))
        except (TimeoutError, LakeError) as exc:
            log.warning(
                "handover_incomplete",
                error=exc.message if isinstance(exc, LakeError) else f"not within {limit_s:.1f} s",
                partitions=len(leaving),
            )
            # Also where the time was over before the sink was asked.
            for step in (self.sink, self.candles):
                step.keep(step.read_to().keys() - leaving)

    def _handover_s(self) -> float:
        """Seconds there are to hand over: less once the worker stops, which drained before."""
        if self._stop_by_s is None:
            return HANDOVER_S
        return max(_LEAST_S, self._stop_by_s - self.clock.monotonic_s())

    def started(self) -> None:
        """Everything is recovered: begin what runs beside the agents."""
        roles = self.settings.core.roles
        self.spawn(self.lake.keep_fresh())
        self.spawn(self.control.run())
        self.spawn(self.status.run())
        self.spawn(LoopWatch(self.clock).run())
        self.spawn(self._vitals().run())
        self.spawn(memory.keep_tidy(self.clock))
        if "validate" in roles:
            self.spawn(self._checkpoint_idle())
        if "sink" in roles:
            self.sink.start()
            self.candles.start()
            self.spawn(self.shed.run())
        if "query" in roles:
            self.spawn(self.hot.run(self.epochs))
        if "maintain" in roles:
            self.spawn(self.maintain.run())
        if "source" in roles:
            self.spawn(self.backfill.run())
        self.ready = True
        log.info(
            "worker_ready",
            roles=list(roles),
            api=f"http://{self.settings.api.host}:{self.settings.api.port}",
        )

    def _vitals(self) -> Vitals:
        return Vitals(
            self.settings.core.data_dir,
            MemoryGauge(self.settings.degradation.memory_limit_mb),
            lambda: self.ready,
            self.status.checks,
            self.clock,
        )

    async def _checkpoint_idle(self) -> None:
        while self.failure is None:
            await self.validate.checkpoint_due()
            await self.clock.sleep(1.0)

    @property
    def crashed(self) -> bool:
        """True once going on would lose or repeat records, whoever found out."""
        return self.failure is not None or bool(self.app.crashed)

    async def drain(self) -> None:
        """Before the app stops: what was received goes into the log, what was read into the lake.

        Bounded: what is left stays in the log and is read by the next worker.
        """
        if not self.ready or self.crashed:
            return
        self.ready = False
        self.maintain.stop()
        began_s = self.clock.monotonic_s()
        self._stop_by_s = began_s + DRAIN_S + _LEAST_S
        try:
            async with asyncio.timeout(DRAIN_S):
                await self.source.stop()
                await self._settle()
                await self.validate.checkpoint_all()
                await self.shed.store()
                await asyncio.gather(self.sink.flush(), self.candles.flush())
        except (TimeoutError, K2Error) as exc:
            log.warning(
                "drain_incomplete",
                error=exc.message if isinstance(exc, K2Error) else f"not within {DRAIN_S:.0f} s",
                pending_rows=self.sink.pending_rows,
                remedy="none needed: the next worker reads it from the log",
            )
        else:
            log.info("worker_drained", after_s=round(self.clock.monotonic_s() - began_s, 2))

    async def _settle(self) -> None:
        """Wait for what is this worker's own to finish.

        The embedded log has no other reader, so it is read to its end. On Kafka others' sources
        keep filling our partitions: what has not been delivered yet is for their next owner.
        """
        if self.settings.embedded:
            await self.status.refresh()
            while not self.status.read_through:
                await self.clock.sleep(_POLL_S)
                await self.status.refresh()
        self.app.consumer.stop_flow()
        while self.source.queued or self.source.in_flight or self.validate.in_flight:
            await self.clock.sleep(_POLL_S)

    def going(self) -> None:
        """Drained, or as far as it got: from here on a part that fails is told, but no crash.

        A log that is away fails whoever still writes to it while Faust takes the app apart.
        """
        self._closing = True

    async def close(self) -> None:
        """After the app has stopped; no part keeps the others from closing."""
        self.going()
        self.ready = False
        if self._opened:
            self.maintain.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        parts: list[Part] = [("log", self.app.transport.close)]
        if self._opened:
            self.lake.give_up()
            sinks = [("sink", self.sink.stop), ("candles", self.candles.stop)]
            end_sink = [] if self.crashed else sinks
            parts = [*end_sink, ("queries", self.hot.close), ("lake", self._close_lake), *parts]
        await close_all([*parts, ("traces", lambda: asyncio.to_thread(TRACING.stop))])

    async def _close_lake(self) -> None:
        self.lake.close()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` until the worker stops; its failure stops the worker."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._observe)
        self._tasks.append(task)

    def _observe(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.crash(error)

    def crash(self, error: BaseException) -> None:
        """Stop the worker: going on would lose or repeat records."""
        if self.failure is not None:
            return
        if self._closing:
            # Nothing goes on any more. What did not get through is read again by the next worker.
            log.warning("failed_while_closing", error=str(error))
            return
        self.failure = error
        self.ready = False
        log.error("worker_crashed", error=str(error), exc_info=error)
        self._crashing = asyncio.ensure_future(self.app.crash(error))

    def check(self) -> None:
        """Raise what failed before: an agent that Faust restarted must not take the next batch."""
        if self.failure is not None:
            raise self.failure
