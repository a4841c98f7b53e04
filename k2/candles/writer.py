"""From trades to candles in the lake, exactly once: the writer behind a sink of its own.

Guarantee: a snapshot's candles are the fold of exactly the trades its vector covers. New versions
go on from the newest ones in the table, and land together with the positions of the trades in them,
only on top of the versions they go on from.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Final

import pyarrow as pa
import structlog

from k2.candles.fold import of_trades, roll_up
from k2.candles.states import CandleStates
from k2.candles.versions import corrected, lake_rows
from k2.clock import Clock
from k2.errors import StaleBasisError
from k2.lake.reader import LakeReader
from k2.lake.vector import Place, Position, Vector
from k2.lake.writer import Basis, CommitResult, LakeWriter

log = structlog.get_logger(__name__)

#: How often other writers may be faster before it is an error.
_ATTEMPTS: Final = 10


class CandleWriter:
    """What a `SinkStep` commits through; its rows are trades. Blocking: call it in a thread."""

    def __init__(
        self, writer: LakeWriter, reader: LakeReader, clock: Clock, exclude: frozenset[str]
    ) -> None:
        self._writer = writer
        self._clock = clock
        self._exclude = exclude
        self._states = CandleStates(reader)
        self._lock = threading.Lock()

    def vector(self) -> Vector:
        """The table's vector now."""
        return self._writer.vector()

    def commit(
        self,
        rows: pa.Table | None,
        base: Mapping[Place, Position | None],
        positions: Mapping[Place, Position],
    ) -> CommitResult:
        """Fold `rows` (trades) into the candles of the table. Raises as `LakeWriter.commit`."""
        fresh = None if rows is None else roll_up(of_trades(rows, self._exclude))
        if fresh is None or not fresh.num_rows:
            return self._writer.commit(None, base, positions)
        partitions = frozenset(place.partition for place in positions)
        with self._lock:
            for attempt in range(_ATTEMPTS):
                try:
                    return self._commit(fresh, partitions, base, positions)
                except StaleBasisError:
                    self._states.forget()
                    if attempt + 1 == _ATTEMPTS:
                        raise
                    log.info("candles_folded_again", attempt=attempt + 1)
        raise AssertionError("unreachable")

    def _commit(
        self,
        fresh: pa.Table,
        partitions: frozenset[int],
        base: Mapping[Place, Position | None],
        positions: Mapping[Place, Position],
    ) -> CommitResult:
        known, basis = self._writer.outlast(lambda: self._states.of(fresh, partitions))
        versions = corrected(known, fresh)
        result = self._writer.commit(
            lake_rows(versions, self._clock.now_us()), base, positions, basis=basis
        )
        self._states.stored(versions, Basis(result.snapshot_id, result.vector, basis.partitions))
        return result

    def give_up(self) -> None:
        """Try nothing again; what is under way may still land."""
        self._writer.give_up()

    def close(self) -> None:
        self._writer.close()
