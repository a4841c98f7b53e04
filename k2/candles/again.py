"""Candles made anew where trades were corrected: of these trades' symbols and days only."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa

from k2.candles.rebuild import Only, Pair, compare, pair, write
from k2.clock import SYSTEM_CLOCK, Clock
from k2.errors import LakeError, StaleBasisError
from k2.lake.reader import LakeReader
from k2.lake.tables import CANDLES
from k2.lake.writer import LakeWriter

_TRIES: Final = 60
_LOOK_S: Final = 0.5
_PLACE: Final = ["log_epoch", "log_topic", "log_partition"]


@dataclass(frozen=True, slots=True)
class Refolded:
    """`windows`: candles that got another version. `left`: why it was not done; empty: it was."""

    windows: int = 0
    snapshot: str = ""
    left: str = ""


def fold_again(
    reader: LakeReader,
    writer: LakeWriter,
    trades: pa.Table,
    exclude: frozenset[str],
    *,
    clock: Clock = SYSTEM_CLOCK,
    wait: Callable[[float], object] = time.sleep,
    tries: int = _TRIES,
) -> Refolded:
    """Make the candles of `trades` (rows of the lake, as they were before a correction) anew.

    They are waited for: a candle that has not got such a trade yet would get what the log has,
    which is its old value.
    """
    if reader.current(CANDLES).snapshot_id is None:
        return Refolded()
    only = Only.of(trades)
    for attempt in range(tries):
        if attempt:
            wait(_LOOK_S)
        try:
            found = pair(reader, wait)
        except LakeError as exc:
            return Refolded(left=exc.message)
        if not _has(found, trades):
            continue
        report = compare(reader, found, exclude, only=only)
        try:
            landed = write(writer, replace(found, added={}), report, clock.now_us())
        except StaleBasisError:
            # A worker has stored candles meanwhile.
            continue
        return Refolded() if landed is None else Refolded(landed.rows, str(landed.snapshot_id))
    return Refolded(left=f"candles have not got all of these trades after {tries * _LOOK_S:.0f} s")


def _has(found: Pair, trades: pa.Table) -> bool:
    """True when the candles are as far as the trades, place by place."""
    last = trades.group_by(_PLACE).aggregate([("platform_sequence", "max")])
    return all(
        found.through.get(tuple(row[name] for name in _PLACE), -1) >= row["platform_sequence_max"]
        for row in last.to_pylist()
    )
