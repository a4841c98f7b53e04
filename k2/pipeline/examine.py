"""Values of a log of record, decoded and judged by the rules: all that no state is needed for.

What came together with other small batches is examined with them, in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2.pipeline import rules
from k2.records import ids_of
from k2.transport.batch import LogBatch


class DecodedRows(Protocol):
    """`batch`: good rows; `rows`: their indexes in the input; `bad`: (row, reason, detail)."""

    @property
    def batch(self) -> pa.RecordBatch: ...

    @property
    def rows(self) -> npt.NDArray[np.int64]: ...

    @property
    def bad(self) -> Sequence[tuple[int, str, str]]: ...


class Decoder(Protocol):
    """What validation needs of a log's codec."""

    def decode(self, values: Sequence[bytes | None]) -> DecodedRows: ...

    def decode_fast(self, values: Sequence[bytes | None]) -> DecodedRows | None: ...

    def may_ask(self, values: Sequence[bytes | None]) -> bool: ...


class Examined(NamedTuple):
    """`batch`: what decoded; `rows`: its indexes in the input; `bad`: (row, reason, detail).

    `verdict`, `ids` and `integer` (see `ids_of`) are of the rows of `batch`.
    """

    batch: pa.RecordBatch
    rows: npt.NDArray[np.int64]
    bad: Sequence[tuple[int, str, str]]
    verdict: rules.Verdict
    ids: npt.NDArray[np.int64]
    integer: npt.NDArray[np.bool_]

    @property
    def sound(self) -> bool:
        """True when nothing was refused."""
        return not self.bad and not self.verdict.reasons

    def cut(self, start: int, count: int) -> Examined:
        """The part of a sound one that `count` values from `start` on gave."""
        part = slice(start, start + count)
        verdict, flags = self.verdict, self.verdict.flags
        return Examined(
            self.batch.slice(start, count),
            np.arange(count),
            (),
            rules.Verdict(verdict.ok[part], [], None if flags is None else flags[part]),
            self.ids[part],
            self.integer[part],
        )


class Examiner:
    """Decodes and judges records of one data type."""

    def __init__(self, kind: str, codec: Decoder, limits: rules.Limits) -> None:
        self._kind = kind
        self._codec = codec
        self._limits = limits

    def examine(self, batch: LogBatch, skip: int) -> Examined:
        """What the values of `batch` after the first `skip` are. May ask the registry."""
        if batch.company is not None and not skip:
            shared = batch.company.share(batch, Examined, self._all)
            if shared is not None:
                whole, start = shared
                return whole.cut(start, len(batch))
        return self._judged(self._codec.decode(batch.values[skip:] if skip else batch.values))

    def _all(self, values: list[bytes | None]) -> Examined | None:
        """None when something is wrong with any: each batch then tells of its own."""
        decoded = self._codec.decode_fast(values)
        if decoded is None:
            return None
        found = self._judged(decoded)
        return found if found.sound else None

    def _judged(self, decoded: DecodedRows) -> Examined:
        verdict = rules.check(self._kind, decoded.batch, self._limits)
        ids, integer = ids_of(self._kind, decoded.batch)
        return Examined(decoded.batch, decoded.rows, decoded.bad, verdict, ids, integer)
