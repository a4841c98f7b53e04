"""Answers with what their instruments are: from the table every worker has, and the lake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import duckdb
import numpy as np
import pyarrow as pa

from k2.degradation.levels import Level
from k2.degradation.tiers import Tiers
from k2.query.bounds import Bounds
from k2.query.cold import ColdSnapshot, column_list
from k2.query.engine import QueryEngine
from k2.query.instruments import CURRENCY, FACTS, STATEMENT, Instruments
from k2.query.seam import Pin
from k2.query.views import create_view

TIER: Final = "tier"
#: Columns that rows of trades and quotes can be given.
ENRICHED: Final = (*FACTS, TIER)
#: Columns that symbols can be given; records have their currency themselves.
DESCRIBED: Final = (CURRENCY, *ENRICHED)
_SQL: Final = f"SELECT {column_list(STATEMENT)} FROM reference_data"  # noqa: S608


class Stated(Protocol):
    """Statements that came by the log (`k2.steps.reference.ReferenceTable`)."""

    def __len__(self) -> int: ...

    def statements(self) -> pa.Table: ...


class Enrichment:
    """Adds columns of `ENRICHED` to rows, as of each row's time; `tier` is the one of now.

    The lake is read once, at the first question: it has what was loaded before this log began, or
    while no log carried it. What is loaded from then on comes by the table.
    """

    def __init__(
        self,
        engine: QueryEngine,
        stated: Stated | None,
        tiers: Mapping[str, Tiers],
        classes: Mapping[str, str],
        level: Callable[[], int],
    ) -> None:
        """`tiers` by asset class; `classes`: the asset class of an exchange."""
        self._classes = classes
        self._engine = engine
        self._stated = stated
        self._tiers = tiers
        self._level = level
        self._lake: pa.Table | None = None
        self._known: tuple[int, Instruments] | None = None
        self._lock = asyncio.Lock()

    async def add(self, rows: pa.Table, names: Sequence[str]) -> tuple[pa.Table, dict[str, Any]]:
        """`rows` (with symbol, exchange, asset_class, timestamp) and the columns `names`.

        And what they are from, JSON-ready: it differs when that differs. Raises `LakeError` when
        the lake has to be asked and is away.
        """
        if self._level() >= Level.SOFT:
            nothing = {name: pa.nulls(rows.num_rows, _TYPES[name]) for name in names}
            return _with(rows, nothing), {"skipped": "from SOFT on"}
        known = await self._instruments()
        added = await asyncio.to_thread(self._added, known, rows, names)
        return added, {"instruments": len(known), "statements": known.statements}

    async def describe(
        self, symbols: pa.Table, names: Sequence[str], at_us: int
    ) -> tuple[pa.Table, dict[str, Any]]:
        """As `add`, for rows of (symbol, exchange): what each is at one time."""
        classes = [self._classes.get(name) for name in symbols["exchange"].to_pylist()]
        times = pa.array(np.full(symbols.num_rows, at_us), pa.timestamp("us", "UTC"))
        made = {"asset_class": pa.array(classes, pa.string()), "timestamp": times}
        return await self.add(_with(symbols, made), names)

    def _added(self, known: Instruments, rows: pa.Table, names: Sequence[str]) -> pa.Table:
        times_us = rows["timestamp"].cast(pa.int64()).to_numpy()
        facts = known.at(rows["exchange"], rows["symbol"], times_us)
        made = {name: facts[name] for name in names if name != TIER}
        if TIER in names:
            made[TIER] = self._tier(rows["asset_class"], rows["symbol"])
        return _with(rows, {name: made[name] for name in names})

    def _tier(self, classes: pa.ChunkedArray, symbols: pa.ChunkedArray) -> pa.Array:
        """The tier of each symbol now; null for a class without tiers."""
        found = np.zeros(len(symbols), np.int8)
        names = np.array(classes.to_pylist(), object)
        for name in set(names) & self._tiers.keys():
            mask = names == name
            found[mask] = self._tiers[name].of_all(_one(symbols.filter(pa.array(mask))))
        return pa.array(found, _TYPES[TIER], mask=found == 0)

    async def _instruments(self) -> Instruments:
        """Everything that is known now."""
        async with self._lock:
            if self._lake is None:
                self._lake = (await self._engine.call("reference", ("reference_data",), _all)).rows
            count = 0 if self._stated is None else len(self._stated)
            if self._known is None or self._known[0] != count:
                self._known = count, await asyncio.to_thread(self._together, self._lake)
            return self._known[1]

    def _together(self, lake: pa.Table) -> Instruments:
        if self._stated is None:
            return Instruments(lake)
        stated = self._stated.statements()
        return Instruments(pa.concat_tables([lake.cast(stated.schema), stated]))


_DECIMAL: Final = pa.decimal128(28, 10)
_TYPES: Final[Mapping[str, pa.DataType]] = {
    **dict.fromkeys((CURRENCY, *FACTS), pa.string()),
    **dict.fromkeys(("tick_size", "lot_size", "min_notional"), _DECIMAL),
    TIER: pa.int32(),
}


def _all(cursor: duckdb.DuckDBPyConnection, pins: Mapping[str, Pin[ColdSnapshot]]) -> pa.Table:
    create_view(cursor, "reference_data", "reference_data", pins["reference_data"], Bounds())
    return cursor.execute(_SQL).to_arrow_table()


def _with(rows: pa.Table, columns: Mapping[str, Any]) -> pa.Table:
    for name, column in columns.items():
        rows = rows.append_column(name, column)
    return rows


def _one(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
