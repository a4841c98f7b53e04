"""The unit of work on the hot path: the records of one partition, as columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from k2.transport.company import Company

#: Headers of one record, in order.
Headers = tuple[tuple[str, bytes], ...]


@dataclass(slots=True, eq=False)
class LogBatch:
    """Whole Kafka record batches of one partition, unpacked into columns.

    A Kafka record batch is never split over two `LogBatch`es, so what a producer wrote in one
    batch is read in one piece.

    - `offsets`: int64, strictly rising; compaction may leave holes.
    - `timestamps_ms`: int64, the record timestamps.
    - `keys`, `values`: bytes or None, one per record.
    - `headers`: sparse, row index -> headers; rows without headers are absent.
    - `first_offset`, `last_offset`: the range of offsets this batch accounts for, inclusive, holes
      and control records before or inside it included. `last_offset` is the offset Faust sees.
    - `highwater`: the partition's end offset as known at fetch time.
    - `cache`: what readers of the same batch share (covers), filled lazily.
    - `company`: small batches of the topic that were fetched with it, and it.
    """

    topic: str
    partition: int
    offsets: npt.NDArray[np.int64]
    timestamps_ms: npt.NDArray[np.int64]
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: dict[int, Headers]
    first_offset: int
    last_offset: int
    highwater: int
    cache: dict[str, Any] = field(default_factory=dict)
    company: Company | None = None

    def __len__(self) -> int:
        return len(self.values)


@dataclass(slots=True)
class OutBatch:
    """Records to be appended to one partition as ONE Kafka record batch, atomically.

    `headers` go on the first record. `keys` and `timestamps_ms` have the length of `values`
    (`timestamps_ms` None means the time of sending). An empty `values` is not sendable: a batch
    that only carries headers has one record with a None value.
    """

    topic: str
    partition: int
    values: list[bytes | None]
    keys: list[bytes | None]
    timestamps_ms: npt.NDArray[np.int64] | None = None
    headers: Headers = ()
