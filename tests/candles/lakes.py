"""A lake with trades and candles, committed as sinks do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
from pyiceberg.catalog import Catalog

from k2.candles.states import read_versions
from k2.candles.versions import VERSIONED, newest
from k2.candles.writer import CandleWriter
from k2.clock import SYSTEM_CLOCK
from k2.lake.reader import LakeReader
from k2.lake.tables import CANDLES, TRADES
from k2.lake.writer import LakeWriter
from tests.candles import plain
from tests.query.rows import place, upto


@dataclass
class CandleLake:
    """`add` stores trades in both tables; each can also be left behind."""

    catalog: Catalog
    exclude: frozenset[str] = frozenset()
    all: list[pa.Table] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reader = LakeReader(self.catalog)
        self.trades = LakeWriter(self.catalog, TRADES)
        self.candles = self.candle_writer()

    def candle_writer(self) -> CandleWriter:
        """Another process, which remembers nothing."""
        inner = LakeWriter(self.catalog, CANDLES)
        return CandleWriter(inner, LakeReader(self.catalog), SYSTEM_CLOCK, self.exclude)

    def add(self, rows: pa.Table, writers: Sequence[LakeWriter | CandleWriter] = ()) -> None:
        where = place(rows["log_partition"][0].as_py(), epoch=rows["log_epoch"][0].as_py())
        last = max(rows["platform_sequence"].to_pylist())
        for writer in writers or (self.trades, self.candles):
            writer.commit(rows, {where: writer.vector().get(where)}, {where: upto(last)})
        self.all.append(rows)

    def stored(self) -> pa.Table:
        """Newest versions as the lake has them, tombstones left out."""
        pinned = self.reader.current(CANDLES)
        parts = [read_versions(pinned, file) for file in self.reader.files(pinned)]
        found = newest(pa.concat_tables([VERSIONED.empty_table(), *parts]))
        return found.filter(pa.compute.greater(found["trade_count"], 0))

    def expected(self) -> dict:
        return plain.candles(pa.concat_tables(self.all), self.exclude)

    def close(self) -> None:
        self.trades.close()
        self.candles.close()
