"""Reading a log without a consumer group: every partition asked for, from given positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from faust.types import TP

from k2.transport.batch import LogBatch


class LogReader(Protocol):
    """A reader of its own, beside the app's consumer: no group, no commits, no rebalance.

    Made by `Transport.create_reader()` of each driver. Guarantee: per partition, batches come in
    log order, without overlap and without holes other than compaction's; a position that retention
    has passed raises instead of jumping.
    """

    async def start(self, positions: Mapping[TP, int]) -> None:
        """Begin at the given offsets (the next record to read of each partition).

        Raises `RetentionGapError` for a position below the earliest offset and `LogError` for one
        beyond the end.
        """

    async def getmany(self, timeout_s: float) -> list[LogBatch]:
        """What arrived, at most one batch per partition; empty when `timeout_s` passed without.

        A batch without records is possible: its range of offsets held only control records or
        compaction holes. Raises `RetentionGapError` when retention overtook the reader.
        """

    def position(self, tp: TP) -> int:
        """The offset of the next record `getmany` would return."""

    def highwater(self, tp: TP) -> int | None:
        """The partition's end offset as of the last fetch; None before the first."""

    async def stop(self) -> None:
        """Release everything; calling it again does nothing."""
