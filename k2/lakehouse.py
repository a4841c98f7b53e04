"""The lake of one worker: catalog, tables, writers, and the snapshots queries pin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import pyarrow as pa
from pyiceberg.catalog import Catalog

from k2.breaker import Limits
from k2.breakers import Breakers
from k2.candles.fold import TRADE_COLUMNS
from k2.candles.writer import CandleWriter
from k2.clock import Clock
from k2.lake.added import arrow_fields
from k2.lake.catalog import open_catalog, warehouse
from k2.lake.history import Retention
from k2.lake.reader import LakeReader
from k2.lake.tables import CANDLES, TABLES, TRADES, TableDef, ensure_tables
from k2.lake.writer import LakeWriter
from k2.maintenance.keeper import Keeper, KeeperOptions
from k2.maintenance.plan import CompactionPolicy
from k2.pipeline.sink import SinkBuffer, SinkPolicy
from k2.query.lake_table import PinnedTable, keep_fresh
from k2.settings import Settings

#: Trades that make a commit of candles due before its time.
_CANDLE_TRADES: Final = 200_000


@dataclass(frozen=True, slots=True)
class Lakehouse:
    """Everything by table name: trades, quotes, gaps; candles have a writer of their own kind."""

    settings: Settings
    clock: Clock
    catalog: Catalog
    reader: LakeReader
    writers: dict[str, LakeWriter]
    candles: CandleWriter
    pinned: dict[str, PinnedTable]
    #: Columns each table has beyond K2's, as of the start.
    added: dict[str, list[pa.Field]]

    @classmethod
    def open(cls, settings: Settings, clock: Clock, breakers: Breakers | None = None) -> Self:
        """Open the catalog, create missing tables, read the newest snapshots; blocking."""
        watched = breakers or breakers_of(settings, clock)
        catalog = open_catalog(settings)
        tables = ensure_tables(catalog, settings.iceberg.compression)
        reader = LakeReader(catalog)
        exclude = frozenset(settings.candles.exclude_conditions)
        retry_s, keep_s = settings.iceberg.commit_retry_s, settings.query.tail_minutes * 60

        def writer(table: TableDef) -> LakeWriter:
            return LakeWriter(
                catalog,
                table,
                retry_s=retry_s,
                retention=retention_of(settings),
                watch=watched.watch_lake,
            )

        lake = cls(
            settings,
            clock,
            catalog,
            reader,
            {name: writer(table) for name, table in TABLES.items() if table is not CANDLES},
            CandleWriter(writer(CANDLES), reader, clock, exclude),
            {
                name: PinnedTable(reader, table, clock, keep_s=keep_s, breaker=watched.catalog)
                for name, table in TABLES.items()
            },
            {name: arrow_fields(TABLES[name], found.schema()) for name, found in tables.items()},
        )
        for table in lake.pinned.values():
            table.refresh()
        return lake

    @property
    def location(self) -> str:
        """Base location of the data files."""
        return warehouse(self.settings)

    def buffers(self) -> dict[str, SinkBuffer]:
        """A sink buffer per table, as configured."""
        sink = self.settings.sink
        policy = SinkPolicy(
            batch_rows=sink.batch_size,
            interval_s=sink.interval_s,
            min_interval_s=sink.min_interval_s,
            max_bytes=sink.max_buffer_mb * 1024 * 1024,
        )
        return {name: SinkBuffer(TABLES[name].arrow_schema, policy) for name in self.writers}

    def candle_buffer(self) -> SinkBuffer:
        """The buffer of trades on their way into candles."""
        columns = pa.schema([TRADES.arrow_schema.field(name) for name in TRADE_COLUMNS])
        policy = SinkPolicy(
            batch_rows=_CANDLE_TRADES,
            interval_s=self.settings.candles.interval_s,
            min_interval_s=min(5.0, self.settings.candles.interval_s),
            max_bytes=self.settings.sink.max_buffer_mb * 1024 * 1024,
        )
        return SinkBuffer(columns, policy)

    async def keep_fresh(self) -> None:
        """Look for newer snapshots for ever."""
        tables = list(self.pinned.values())
        await keep_fresh(tables, self.clock, every_s=self.settings.query.refresh_s)

    def rows(self) -> dict[str, int]:
        """Rows per table as of the newest snapshot known here; no I/O."""
        return {
            name: sum(file.rows for file in table.snapshots()[0].files)
            for name, table in self.pinned.items()
        }

    def files(self) -> dict[str, int]:
        """Data files per table, likewise."""
        return {name: len(table.snapshots()[0].files) for name, table in self.pinned.items()}

    def give_up(self) -> None:
        """Have the writers try nothing again: a lake that is away must not keep the process."""
        for writer in self.writers.values():
            writer.give_up()
        self.candles.give_up()

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()
        self.candles.close()


def keepers(catalog: Catalog, settings: Settings) -> dict[str, Keeper]:
    """What maintains each table, as configured."""
    retry_s = settings.iceberg.commit_retry_s
    maintain = settings.maintain
    policy = CompactionPolicy(
        target_bytes=maintain.target_file_mb * 1024 * 1024, min_files=maintain.min_files
    )
    return {
        name: Keeper(
            catalog,
            table,
            KeeperOptions(
                policy,
                retention_of(settings),
                maintain.days_of(name),
                retry_s,
                readers_s=settings.query.tail_minutes * 60,
            ),
        )
        for name, table in TABLES.items()
    }


def retention_of(settings: Settings) -> Retention:
    """Which snapshots stay; the sink's commits and maintenance must agree."""
    return Retention(days=settings.maintain.history_days)


def breakers_of(settings: Settings, clock: Clock) -> Breakers:
    """The circuit breakers of a worker, as configured."""
    limits = settings.breaker
    return Breakers(Limits(limits.failures, limits.successes, limits.open_s), clock)
