from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from k2.clock import SYSTEM_CLOCK
from k2.hot import s3_access
from k2.lake.catalog import open_catalog, warehouse
from k2.lake.reader import LakeReader
from k2.lake.tables import CANDLES, GAPS, QUOTES, TRADES, ensure_tables
from k2.lake.writer import LakeWriter
from k2.query.database import open_database
from k2.query.engine import QueryEngine, Source
from k2.query.lake_table import PinnedTable
from k2.query.tail import Tail
from k2.settings import load_settings
from tests.query.rows import batch, sequences_of, upto


class Platform:
    """A real lake in a directory, real tails, and the engine over both."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("K2_DATA_DIR", str(path))
        settings = load_settings()
        self.warehouse = settings.core.data_dir / "warehouse"
        self._location = warehouse(settings)
        self._s3 = s3_access(settings)
        self.catalog = open_catalog(settings)
        ensure_tables(self.catalog, "zstd")
        self.executor = ThreadPoolExecutor(2)
        reader = LakeReader(self.catalog)
        definitions = {"trades": TRADES, "quotes": QUOTES, "gaps": GAPS, "candles": CANDLES}
        self.writers = {
            name: LakeWriter(self.catalog, table, executor=self.executor)
            for name, table in definitions.items()
        }
        self.tails = {name: Tail(definitions[name].arrow_schema) for name in ("trades", "quotes")}
        self.tables = {
            name: PinnedTable(reader, table, SYSTEM_CLOCK, keep_s=900)
            for name, table in definitions.items()
        }
        self.database = self.open_database(iceberg=False)
        self.refresh()
        self.engine = self.make_engine()

    def open_database(self, *, iceberg: bool):
        return open_database(
            memory_limit_mb=256,
            threads=2,
            locations=[self._location],
            s3=self._s3,
            iceberg=iceberg,
        )

    def make_engine(self, **options) -> QueryEngine:
        sources = {
            "trades": Source(self.tables["trades"], tail=self.tails["trades"].view),
            "quotes": Source(self.tables["quotes"], tail=self.tails["quotes"].view),
            "gaps": Source(self.tables["gaps"], "detected_at"),
            "candles": Source(self.tables["candles"], "window_start"),
        }
        given = {"pool_size": 3, "queue_size": 10, "timeout_s": 20.0, **options}
        return QueryEngine(self.database, sources, **given)

    def refresh(self) -> None:
        for table in self.tables.values():
            table.refresh()

    def commit(self, table, where, *, kind: str = "trades") -> None:
        """Put rows of one place into the lake, as the sink does."""
        base = self.writers[kind].vector().get(where)
        last = int(sequences_of(table)[-1])
        self.writers[kind].commit(table, {where: base}, {where: upto(last)})

    def produce(self, table, where, *, kind: str = "trades", now_s: float = 0.0) -> None:
        """Put rows of one place into the tail, as the feed does."""
        tail = self.tails[kind]
        if where not in tail.view().places:
            tail.start(where, -1)
        ids = sequences_of(table)
        tail.add(where, batch(table), last=int(ids[-1]), now_s=now_s)

    def close(self) -> None:
        self.engine.close()
        self.database.close()
        for writer in self.writers.values():
            writer.close()
        self.executor.shutdown()
        self.catalog.close()


@pytest.fixture
async def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    made = Platform(tmp_path / "data", monkeypatch)
    yield made
    made.close()
