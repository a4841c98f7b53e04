"""What validation writes beside the validated records: dead letters and gap events.

Both carry covers, with ranges that need not abut: a reader recognises what is written again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from k2.clock import Clock
from k2.pipeline.continuity import GapEvent
from k2.pipeline.groups import Cut, Records, in_groups
from k2.records import WIRE_DEAD_LETTERS, build
from k2.topics import MarketTopic
from k2.transport.batch import LogBatch, OutBatch

_EVENT_COLUMNS: Final = (
    "symbol",
    "event",
    "first_id",
    "last_id",
    "how",
    "log_offset",
    "ordinal",
)


#: On a record that was taken out of the dead letters and put into the log again: the place of its
#: first letter, TOPIC/PARTITION/OFFSET.
REDRIVE_HEADER: Final = "k2-redrive"


def _redriven(batch: LogBatch, row: int) -> str | None:
    found = dict(batch.headers.get(row, ())).get(REDRIVE_HEADER)
    return None if found is None else found.decode(errors="replace")


class Refused(NamedTuple):
    """A record that may not pass: its row in the batch, the reason's code, and what is wrong."""

    row: int
    reason: str
    detail: str


class Encoder(Protocol):
    """What is needed of the codecs of gaps and dead letters."""

    def encode(self, batch: pa.RecordBatch) -> list[bytes]: ...


class SideCodecs(Protocol):
    """The codecs by what they encode."""

    @property
    def gaps(self) -> Encoder: ...

    @property
    def dead_letters(self) -> Encoder: ...


class SideOutputs:
    """Builds them for one partition of one incarnation of a log."""

    def __init__(
        self,
        topic: MarketTopic,
        partition: int,
        epoch: str,
        codecs: SideCodecs,
        clock: Clock,
        cut: Cut,
    ) -> None:
        self._topic = topic
        self._partition = partition
        self._epoch = epoch
        self._codecs = codecs
        self._clock = clock
        self._cut = cut

    def dead_letters(
        self, batch: LogBatch, refused: Sequence[Refused], first: int
    ) -> list[OutBatch]:
        """`refused`: by rising row; their keys are their places."""
        if not refused:
            return []
        offsets = batch.offsets[[entry.row for entry in refused]]
        letters = [
            self._letter(batch, entry, offset)
            for entry, offset in zip(refused, offsets.tolist(), strict=True)
        ]
        encoded = self._codecs.dead_letters.encode(
            pa.RecordBatch.from_pylist(letters, schema=WIRE_DEAD_LETTERS)
        )
        place = f"{self._epoch}/{self._topic.log}/{self._partition}"
        keys = [f"{place}/{offset}".encode() for offset in offsets.tolist()]
        records = Records(offsets, keys, encoded)
        return self._groups(self._topic.dlq, records, first, batch.last_offset)

    def _letter(self, batch: LogBatch, entry: Refused, offset: int) -> dict[str, Any]:
        key, value = batch.keys[entry.row], batch.values[entry.row]
        return {
            "reason": entry.reason,
            "detail": entry.detail,
            "topic": self._topic.log,
            "partition": self._partition,
            "offset": offset,
            "log_epoch": self._epoch,
            "timestamp": self._clock.now_us(),
            # What no group can hold stays where it is: in the log, at the offset the letter names.
            "key": key if self._holds(key, entry.detail) else None,
            "value": value if self._holds(value, entry.detail) else None,
            "letter": _redriven(batch, entry.row),
        }

    def _holds(self, raw: bytes | None, detail: str) -> bool:
        return len(raw or b"") + len(detail) <= self._cut.max_bytes // 3

    def gaps(self, events: Sequence[GapEvent], first: int, last: int) -> list[OutBatch]:
        """`events`: by rising log offset."""
        if not events:
            return []
        exchange, data_type = self._topic.exchange.upper(), self._topic.data_type
        columns = {
            "message_id": [
                f"{exchange}:{e.detected_at_us // 1_000}:{e.symbol}:"
                f"{data_type}-{e.event}-{e.first_id}-{e.last_id}"
                for e in events
            ],
            "exchange": exchange,
            "data_type": data_type,
            "detected_at": [event.detected_at_us for event in events],
            **{name: [getattr(event, name) for event in events] for name in _EVENT_COLUMNS},
        }
        values = self._codecs.gaps.encode(build("gaps", len(events), columns))
        offsets = np.array([event.log_offset for event in events], np.int64)
        keys = [event.symbol.encode() for event in events]
        return self._groups(self._topic.gaps, Records(offsets, keys, values), first, last)

    def _groups(self, topic: str, records: Records, first: int, last: int) -> list[OutBatch]:
        return in_groups(
            records,
            topic=topic,
            partition=self._partition,
            epoch=self._epoch,
            first=first,
            last=last,
            cut=self._cut,
        )
