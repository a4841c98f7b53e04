"""When refusing records must stop: a bad deploy would empty the stream into the dead letters.

Two bounds per partition: records refused in a row, and the share of refused ones among the last
`window`. Above either the batch at hand is not written anywhere: the worker stops, and the records
wait in the log for a deploy that can read them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from k2.errors import DeadLetterLimitError
from k2.pipeline.side import Refused
from k2.transport.batch import LogBatch

#: Reasons named in the error.
_SHOWN = 3
#: Into about how many shares a window is cut.
_PARTS = 32


class _Share(NamedTuple):
    """What some batches had."""

    records: int
    refused: int


@dataclass(frozen=True, slots=True)
class DeadLetterLimit:
    """What was refused of one partition so far; a bound of 0 is none."""

    max_consecutive: int
    max_ratio: float
    window: int
    run: int = 0
    shares: tuple[_Share, ...] = ()

    def after(self, batch: LogBatch, skip: int, refused: Sequence[Refused]) -> DeadLetterLimit:
        """The state after `batch` from row `skip` on, of which `refused` (by rising row) may not
        pass. Raises `DeadLetterLimitError`."""
        records = len(batch) - skip
        longest, run = _runs([entry.row - skip for entry in refused], records, self.run)
        shares = self._recent(_Share(records, len(refused)))
        if refused:
            self._check(batch, longest, shares, refused)
        return replace(self, run=run, shares=shares)

    def _recent(self, share: _Share) -> tuple[_Share, ...]:
        """The newest shares that make up the window; small ones are put together."""
        shares = self.shares
        if shares and shares[-1].records * _PARTS < self.window:
            last = shares[-1]
            share = _Share(last.records + share.records, last.refused + share.refused)
            shares = shares[:-1]
        shares = (*shares, share)
        held = sum(one.records for one in shares)
        first = 0
        while held - shares[first].records >= self.window:
            held -= shares[first].records
            first += 1
        return shares[first:]

    def _check(
        self,
        batch: LogBatch,
        longest: int,
        shares: tuple[_Share, ...],
        refused: Sequence[Refused],
    ) -> None:
        if self.max_consecutive and longest > self.max_consecutive:
            raise _error(
                batch,
                refused,
                f"{longest} records in a row are refused; K2_VALIDATE_DLQ_MAX_CONSECUTIVE allows "
                f"{self.max_consecutive}",
            )
        count = sum(one.refused for one in shares)
        # A window that is not full counts as if the rest of it were good.
        among = max(self.window, sum(one.records for one in shares))
        if self.max_ratio and count > self.max_ratio * among:
            raise _error(
                batch,
                refused,
                f"{count} of the last {among} records are refused; K2_VALIDATE_DLQ_MAX_RATIO "
                f"allows {self.max_ratio:g}",
            )


def _runs(rows: Sequence[int], records: int, before: int) -> tuple[int, int]:
    """(longest run of refused rows, the run at the end), with `before` refused ahead of row 0."""
    longest, run, expected = 0, before, 0
    for row in rows:
        run = run + 1 if row == expected else 1
        expected = row + 1
        longest = max(longest, run)
    return longest, run if expected == records else 0


def _error(batch: LogBatch, refused: Sequence[Refused], what: str) -> DeadLetterLimitError:
    reasons = Counter(entry.reason for entry in refused)
    shown = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(_SHOWN))
    first = refused[0]
    return DeadLetterLimitError(
        f"{batch.topic}[{batch.partition}]: {what}. Of offsets {batch.first_offset} to "
        f"{batch.last_offset}: {shown}; first {first.detail!r} at offset "
        f"{int(batch.offsets[first.row])}. They stay in the log: mend or roll back what reads or "
        "writes them and start again, or raise the limit to take them as dead letters",
        topic=batch.topic,
        partition=batch.partition,
        offset=int(batch.offsets[first.row]),
        reasons=dict(reasons),
    )
