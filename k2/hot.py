"""The query side of a worker: hot rows read from the log, and the engine over hot and cold."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

import pyarrow as pa
import structlog
from aiokafka.errors import KafkaError
from faust.types import TP

from k2 import metrics
from k2.breakers import Breaker
from k2.clock import Clock
from k2.codecs import Codecs
from k2.degradation.tiers import load_tiers
from k2.errors import K2Error
from k2.freshness import Freshness
from k2.lake.tables import AGG_TRADES, CANDLES, GAPS, QUOTES, REFERENCE, TRADES
from k2.lakehouse import Lakehouse
from k2.quality import Quality
from k2.query.database import S3Access, open_database
from k2.query.engine import QueryEngine, Source
from k2.query.enrich import Enrichment
from k2.query.feed import TailFeed
from k2.query.tail import Tail
from k2.settings import Settings
from k2.steps.reference import ReferenceTable

log = structlog.get_logger(__name__)

_AGAIN_S: Final = 1.0
#: What log, lake and memory may answer; the tail is a copy, so reading it again mends all of them.
_PASSING: Final = (K2Error, KafkaError, OSError, pa.ArrowException)


class HotSide:
    """Tails, their feeds, and the engine; one per worker.

    A feed that fails starts again at the lake's vector; until it has caught up, answers come from
    an older picture or the lake alone, which their `as_of` says.
    """

    def __init__(
        self,
        settings: Settings,
        transport: Any,
        lake: Lakehouse,
        codecs: Codecs,
        clock: Clock,
        breaker: Breaker | None = None,
        reference: Any = None,
    ) -> None:
        """`reference`: the global table of `tables.reference`; None where no log carries it."""
        self._settings = settings
        self._transport = transport
        self._lake = lake
        self._codecs = codecs
        self._clock = clock
        self.freshness = Freshness(clock)
        self.quality = Quality(clock)
        hot = "query" in settings.core.roles
        carried = {topic.data_type for topic in settings.topics}
        self.tails = {
            table.name: Tail(table.arrow_schema, lake.added[table.name])
            for table in (TRADES, QUOTES, AGG_TRADES, REFERENCE)
            if table.name in carried
        }
        self.engine = open_engine(settings, lake, self.tails if hot else {}, breaker)
        self._feeds: dict[str, TailFeed] = {}
        logs = [topic.log for topic in settings.topics if topic.data_type == REFERENCE.name]
        self.statements = (
            ReferenceTable(reference, codecs.of(logs[0]))
            if logs and reference is not None
            else None
        )

    def enrichment(self, level: Callable[[], int]) -> Enrichment:
        """What instruments are, for answers. `level`: of degradation."""
        tiers = load_tiers(self._settings.degradation.tiers_file)
        classes = {topic.exchange.upper(): topic.asset_class for topic in self._settings.topics}
        return Enrichment(self.engine, self.statements, tiers, classes, level)

    async def run(self, epochs: Mapping[str, str]) -> None:
        """Feed every tail for ever."""
        await asyncio.gather(*(self._feed(name, epochs) for name in self.tails))

    def read_to(self) -> dict[str, int]:
        """Records each tail is behind the log; one that starts, or starts again, is not named."""
        return {name: feed.lag() for name, feed in self._feeds.items()}

    async def close(self) -> None:
        await asyncio.to_thread(self.engine.close)

    async def _feed(self, name: str, epochs: Mapping[str, str]) -> None:
        while True:
            reader = self._transport.create_reader()
            try:
                feed = self._new_feed(name, reader)
                await feed.start(self._lake.pinned[name].vector(), epochs, await self._bounds(name))
                # Its reader has positions only now, and only until it is stopped.
                self._feeds[name] = feed
                await feed.run()
            except _PASSING as exc:
                details = exc.details if isinstance(exc, K2Error) else {"kind": type(exc).__name__}
                log.warning("tail_interrupted", **{**details, "table": name, "error": str(exc)})
                await self._clock.sleep(_AGAIN_S)
            finally:
                self._feeds.pop(name, None)
                await reader.stop()

    def _new_feed(self, name: str, reader: Any) -> TailFeed:
        topic = next(topic for topic in self._settings.topics if topic.data_type == name)
        query = self._settings.query
        return TailFeed(
            reader,
            self.tails[name],
            self._codecs.reader(topic.log, self._lake.added[name]),
            self._clock,
            committed=lambda: self.engine.committed(name),
            max_minutes=query.tail_minutes,
            max_bytes=functools.partial(self._room, name),
            observe=functools.partial(self._visible, name),
        )

    def _room(self, name: str) -> int:
        """Bytes that a tail may hold: what the others leave of all, and at least its even share."""
        total = self._settings.query.tail_max_mb * 1024 * 1024
        others = sum(tail.stats().nbytes for other, tail in self.tails.items() if other != name)
        return max(total // len(self.tails), total - others)

    def _visible(self, name: str, rows: pa.RecordBatch) -> None:
        """Rows of a table that queries can see from now on."""
        self.freshness.observe(name, rows)
        self.quality.shown(name, rows)

    async def _bounds(self, name: str) -> dict[TP, int]:
        """Earliest offset of every partition the tail of `name` reads."""
        partitions = range(self._settings.kafka.partitions)
        tps = [
            TP(read, partition)
            for topic in self._settings.topics
            if topic.data_type == name
            for read in (topic.validated, topic.deferred)
            for partition in partitions
        ]
        bounds = await self._transport.bounds(tps)
        return {tp: first for tp, (first, _) in bounds.items()}

    def observe(self) -> None:
        """Set the gauges of the tails and of the feeds' quality."""
        self.quality.observe()
        for name, tail in self.tails.items():
            stats = tail.stats()
            metrics.TAIL_ROWS.labels(name).set(stats.rows)
            metrics.TAIL_BYTES.labels(name).set(stats.nbytes)


def open_engine(
    settings: Settings,
    lake: Lakehouse,
    tails: Mapping[str, Tail],
    breaker: Breaker | None = None,
) -> QueryEngine:
    """The engine over the lake's tables, with the hot rows of those that have a tail."""
    sources = {
        table.name: Source(
            lake.pinned[table.name],
            table.time_column,
            tails[table.name].view if table.name in tails else None,
        )
        for table in (TRADES, QUOTES, AGG_TRADES, REFERENCE, GAPS, CANDLES)
    }
    query = settings.query
    database = open_database(
        memory_limit_mb=query.memory_limit_mb,
        threads=query.threads,
        locations=[lake.location],
        s3=s3_access(settings),
        iceberg=True,
    )
    return QueryEngine(
        database,
        sources,
        pool_size=query.pool_size,
        queue_size=query.queue_size,
        timeout_s=query.timeout_s,
        breaker=breaker,
    )


def s3_access(settings: Settings) -> S3Access | None:
    """How queries reach the warehouse; None when it is not on S3."""
    iceberg = settings.iceberg
    if not iceberg.warehouse.startswith("s3"):
        return None
    return S3Access(
        iceberg.s3_endpoint,
        iceberg.s3_access_key.get_secret_value(),
        iceberg.s3_secret_key.get_secret_value(),
        iceberg.s3_region,
    )
