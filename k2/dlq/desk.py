"""What the commands do: find letters, and put them into the log of record again.

A re-driven record is the letter's key and value, byte for byte, at the end of its partition, with
a header that names the first letter. Its exchange id makes it idempotent: what passed once is a
duplicate the second time. What is refused again comes back as a letter that names the first one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
from faust.types import TP

from k2.codecs import Codecs, open_registry
from k2.dlq.letters import REDRIVEN, Letter, Standing, Wanted, standings, topics_asked
from k2.dlq.log import Append, Log, read_all
from k2.pipeline.side import REDRIVE_HEADER
from k2.records import WIRE_DEAD_LETTERS
from k2.settings import Settings
from k2.topics import parse

FRAME: Final = "a frame of the exchange, which never was a record"
BYTES_ELSEWHERE: Final = "its bytes were too large for a letter; they are in the log"
DONE: Final = "re-driven before"
NOT_THERE: Final = "its topic has no such partition"


@dataclass(slots=True)
class Replayed:
    """What a replay did: (letter, offset in the log of record), and why others were left."""

    sent: list[tuple[Letter, int]] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)


class Desk:
    """Dead letters of one log."""

    def __init__(self, settings: Settings, log: Log, codecs: Codecs) -> None:
        self._partitions = settings.kafka.partitions
        self._topics = settings.topics
        self._topics = settings.topics
        self._log = log
        self._codecs = codecs

    @classmethod
    def open(cls, settings: Settings, log: Log) -> Self:
        """With the configured registry."""
        return cls(settings, log, Codecs.open(open_registry(settings), settings.topics))

    async def find(self, wanted: Wanted) -> list[Standing]:
        """Matching letters, oldest first per partition."""
        known = [topic.dlq for topic in self._topics]
        tps = [
            TP(name, partition)
            for name in topics_asked(wanted, known)
            for partition in range(self._partitions)
        ]
        letters: list[Letter] = []
        async for batch in read_all(self._log, tps):
            decoded = self._codecs.of(batch.topic).decode(batch.values)
            offsets = batch.offsets[np.asarray(decoded.rows)].tolist()
            rows = decoded.batch.to_pylist()
            letters += [
                Letter.of(batch.topic, batch.partition, offset, row)
                for offset, row in zip(offsets, rows, strict=True)
            ]
        letters.sort(key=lambda letter: (letter.topic, letter.partition, letter.offset))
        return [found for found in standings(letters) if wanted.matches(found.letter)]

    def decoded(self, letter: Letter) -> dict[str, Any] | None:
        """The record in a letter, when its bytes can be read as one."""
        if letter.value is None or letter.log_offset < 0:
            return None
        rows = self._codecs.of(letter.log_topic).decode([letter.value]).batch.to_pylist()
        return rows[0] if rows else None

    async def replay(
        self, found: Sequence[Standing], *, again: bool = False, dry_run: bool = False
    ) -> Replayed:
        """Put letters into the log of record again and mark them; `again`: also those marked.

        A mark is written after the record is acknowledged: stopped between the two, a replay
        sends the record twice, and the second is dropped as a duplicate.
        """
        done = Replayed()
        for standing in found:
            why = self._why_not(standing, again)
            if why is not None:
                done.left[why] += 1
                continue
            letter, offset = standing.letter, -1
            if not dry_run:
                offset = await self._redrive(letter)
            done.sent.append((letter, offset))
        return done

    def _why_not(self, standing: Standing, again: bool) -> str | None:
        letter = standing.letter
        if letter.log_offset < 0:
            return FRAME
        if letter.value is None:
            return BYTES_ELSEWHERE
        if not 0 <= letter.log_partition < self._partitions:
            return NOT_THERE
        return DONE if standing.redriven and not again else None

    async def _redrive(self, letter: Letter) -> int:
        first = letter.first or letter.ident
        place = TP(letter.log_topic, letter.log_partition)
        headers = ((REDRIVE_HEADER, first.encode()),)
        (offset,) = await self._log.append([Append(place, letter.key, letter.value, headers)])
        await self._log.append([self._mark(letter, offset)])
        return offset

    def _mark(self, letter: Letter, offset: int) -> Append:
        row = {
            "reason": REDRIVEN,
            "detail": f"to {letter.log_topic}[{letter.log_partition}] at offset {offset}",
            "topic": letter.log_topic,
            "partition": letter.log_partition,
            "offset": offset,
            "log_epoch": letter.log_epoch,
            "timestamp": time.time_ns() // 1_000,
            "key": None,
            "value": None,
            "letter": letter.ident,
        }
        batch = pa.RecordBatch.from_pylist([row], schema=WIRE_DEAD_LETTERS)
        (value,) = self._codecs.of(parse(letter.topic)[0].dlq).encode(batch)
        return Append(TP(letter.topic, letter.partition), letter.ident.encode(), value)
