"""One table of the lake for queries: its newest snapshots, planned ahead, swapped as a whole.

Some older snapshots are kept as well. The tail holds rows long after the lake has them, so a query
may pin a snapshot of minutes ago and take the rest from memory: the small files of the last commits
are then not opened at all. The one with the fewest files is the cheapest; after a compaction that
is the compacted one.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import structlog
from pyiceberg.table.snapshots import Snapshot

from k2.breakers import Breaker
from k2.clock import Clock
from k2.errors import LakeError, SnapshotNotFoundError
from k2.lake.added import arrow_fields
from k2.lake.history import ancestors, only_grew
from k2.lake.reader import LakeReader, Pinned
from k2.lake.tables import TableDef
from k2.lake.vector import Vector
from k2.query.cold import ColdSnapshot
from k2.query.cold_rows import ColdRows

log = structlog.get_logger(__name__)


#: Plans of snapshots asked for by id or time, kept per table.
_OLD_SNAPSHOTS: Final = 16


@dataclass(frozen=True, slots=True)
class AsOf:
    """Which state of a table: a snapshot's id, or else a time, milliseconds UTC."""

    snapshot_id: int | None = None
    time_ms: int = 0


@dataclass(frozen=True, slots=True)
class Look:
    """The newest look at the catalog. `error` is empty when it answered."""

    at_s: float
    latency_ms: float
    error: str = ""


class PinnedTable:
    """Thread-safe. `keep_s`: age up to which older snapshots are kept, as the tail keeps rows."""

    def __init__(
        self,
        reader: LakeReader,
        table: TableDef,
        clock: Clock,
        *,
        keep_s: float,
        breaker: Breaker | None = None,
    ) -> None:
        """`breaker`: of the catalog; while it is open the snapshots known stay the newest."""
        self._breaker = breaker
        self._reader = reader
        self._table = table
        self._clock = clock
        self._keep_s = keep_s
        self._rows = ColdRows(table.arrow_schema, table.time_column)
        self._lock = threading.Lock()
        self._kept: tuple[ColdSnapshot, ...] = ()
        self._old: OrderedDict[int | None, ColdSnapshot] = OrderedDict()
        self.look: Look | None = None

    def snapshots(self) -> Sequence[ColdSnapshot]:
        """The newest first. Raises `LakeError` before the first `refresh`."""
        if not self._kept:
            raise LakeError(
                f"table {self._table} has not been read yet; the catalog may not answer",
                table=str(self._table),
            )
        return self._kept

    def at(self, when: AsOf) -> ColdSnapshot:
        """The snapshot of an id, or the one current at a time (blocking).

        Raises `SnapshotNotFoundError`, and `LakeError` when the lake cannot say.
        """
        with self._asking():
            if when.snapshot_id is not None:
                pinned = self._reader.by_id(self._table, when.snapshot_id)
            else:
                pinned = self._reader.at(self._table, when.time_ms)
        with self._lock:
            known = self._old.get(pinned.snapshot_id)
        if known is None:
            known = self._planned(
                pinned, self._reader.has_deletes(pinned), arrow_fields(self._table, pinned.schema)
            )
        with self._lock:
            self._old[pinned.snapshot_id] = known
            self._old.move_to_end(pinned.snapshot_id)
            while len(self._old) > _OLD_SNAPSHOTS:
                self._old.popitem(last=False)
        return known

    def history(self, limit: int) -> list[Snapshot]:
        """The newest snapshots of the table's history, newest first (blocking)."""
        with self._asking():
            pinned = self._reader.current(self._table)
        return list(itertools.islice(ancestors(pinned.metadata, pinned.snapshot), limit))

    def vector(self) -> Vector:
        """Of the newest snapshot; empty before the first `refresh`."""
        kept = self._kept
        return kept[0].vector if kept else Vector.empty()

    def refresh(self) -> None:
        """Look for a newer snapshot (blocking). Raises `LakeError` when the lake cannot say."""
        began_s, error = self._clock.monotonic_s(), ""
        try:
            self._refresh()
        except LakeError as exc:
            error = exc.message
            raise
        finally:
            now_s = self._clock.monotonic_s()
            self.look = Look(now_s, (now_s - began_s) * 1_000, error)

    def _refresh(self) -> None:
        with self._lock:
            with self._asking():
                pinned = self._reader.current(self._table)
            added = tuple(arrow_fields(self._table, pinned.metadata.schema()))
            same = bool(self._kept) and self._kept[0].added == added
            if same and self._kept[0].snapshot_id == pinned.snapshot_id:
                return
            now_s = self._clock.monotonic_s()
            deletes = self._reader.has_deletes(pinned)
            newest = self._planned(pinned, deletes, added)
            # Where rows were taken out, older snapshots would show them again.
            grown = (
                not deletes
                and same
                and only_grew(pinned.metadata, pinned.snapshot, self._kept[0].snapshot_id)
            )
            older = thinned(self._kept, now_s, self._keep_s) if grown else ()
            # The empty table before the first commit is the cheapest of all, but an answer that
            # names no snapshot cannot be asked for again.
            self._kept = (newest, *(one for one in older if one.snapshot_id is not None))

    def _asking(self) -> AbstractContextManager[None]:
        return self._breaker.guarding(_blames) if self._breaker else nullcontext()

    def _planned(self, pinned: Pinned, deletes: bool, added: Sequence[pa.Field]) -> ColdSnapshot:
        return ColdSnapshot(
            snapshot_id=pinned.snapshot_id,
            vector=pinned.vector,
            columns=self._table.arrow_schema,
            files=self._reader.files(pinned),
            metadata_location=pinned.metadata_location if deletes else None,
            pinned_s=self._clock.monotonic_s(),
            reader=self._rows,
            added=added,
        )


def _blames(error: Exception) -> bool:
    return isinstance(error, LakeError) and not isinstance(error, SnapshotNotFoundError)


def thinned(
    snapshots: Sequence[ColdSnapshot], now_s: float, keep_s: float
) -> tuple[ColdSnapshot, ...]:
    """Those to keep of `snapshots` (newest first): ages about doubling, none above `keep_s`."""
    kept: list[ColdSnapshot] = []
    last_s = 0.0
    for index, snapshot in enumerate(snapshots):
        age_s = now_s - snapshot.pinned_s
        if age_s > keep_s:
            break
        older_s = now_s - snapshots[index + 1].pinned_s if index + 1 < len(snapshots) else keep_s
        # Kept when leaving it out would open a gap of more than twice the age before it.
        if not kept or min(older_s, keep_s) > 2 * last_s + 1.0:
            kept.append(snapshot)
            last_s = age_s
    return tuple(kept)


async def keep_fresh(tables: Sequence[PinnedTable], clock: Clock, *, every_s: float) -> None:
    """Refresh all tables for ever. A lake that does not answer leaves the last good snapshots."""
    while True:
        for table in tables:
            try:
                await asyncio.to_thread(table.refresh)
            except LakeError as exc:
                # That a circuit is open was said when it opened.
                told = log.debug if "breaker" in exc.details else log.warning
                told("lake_refresh_failed", error=exc.message, **exc.details)
        await clock.sleep(every_s)
