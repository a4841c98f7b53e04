"""Dead letters, what became of them, and which are asked for: pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC as _UTC
from typing import Any, Final

from k2.errors import InvalidParameter
from k2.topics import parse

#: Reason of the mark that a letter was put into the log again; stored, so never renamed.
REDRIVEN: Final = "REDRIVEN"

OPEN: Final = "open"
AGAIN: Final = "refused again"

_ID = re.compile(r"(?P<topic>[a-z0-9_.]+\.dlq)/(?P<partition>\d+)/(?P<offset>\d+)")


@dataclass(frozen=True, slots=True)
class Letter:
    """One record of a dead-letter topic; `log_*`: where the refused record is, -1 for a frame."""

    topic: str
    partition: int
    offset: int
    reason: str
    detail: str
    log_topic: str
    log_partition: int
    log_offset: int
    log_epoch: str
    timestamp_us: int
    key: bytes | None
    value: bytes | None
    first: str | None

    @property
    def ident(self) -> str:
        """Its place, as commands take it."""
        return f"{self.topic}/{self.partition}/{self.offset}"

    @classmethod
    def of(cls, topic: str, partition: int, offset: int, row: dict[str, Any]) -> Letter:
        """From a decoded record."""
        return cls(
            topic, partition, offset, row["reason"], row["detail"], row["topic"],
            row["partition"], row["offset"], row["log_epoch"], _us(row["timestamp"]),
            row["key"], row["value"], row["letter"],
        )  # fmt: skip


def _us(moment: Any) -> int:
    return int(moment.replace(tzinfo=_UTC).timestamp() * 1_000_000)


def place_of(ident: str) -> tuple[str, int, int]:
    """(topic, partition, offset) of an id. Raises `InvalidParameter`."""
    match = _ID.fullmatch(ident)
    if match is None:
        raise InvalidParameter("id", ident, "TOPIC.dlq/PARTITION/OFFSET, as `k2 dlq list` shows it")
    return match["topic"], int(match["partition"]), int(match["offset"])


@dataclass(frozen=True, slots=True)
class Wanted:
    """A filter; what is None is not asked for. Times are microseconds, offsets of the DLQ."""

    topic: str | None = None
    partition: int | None = None
    reasons: tuple[str, ...] = ()
    since_us: int | None = None
    until_us: int | None = None
    first_offset: int | None = None
    last_offset: int | None = None
    idents: tuple[str, ...] = ()

    def matches(self, letter: Letter) -> bool:
        return (
            (self.partition is None or letter.partition == self.partition)
            and (not self.reasons or letter.reason in self.reasons)
            and (self.since_us is None or letter.timestamp_us >= self.since_us)
            and (self.until_us is None or letter.timestamp_us < self.until_us)
            and (self.first_offset is None or letter.offset >= self.first_offset)
            and (self.last_offset is None or letter.offset <= self.last_offset)
            and (not self.idents or letter.ident in self.idents)
        )

    @property
    def everything(self) -> bool:
        return self == Wanted()


def topics_asked(wanted: Wanted, known: Sequence[str]) -> list[str]:
    """The dead-letter topics to read. Raises `InvalidParameter` for an unknown one."""
    asked = {place_of(ident)[0] for ident in wanted.idents}
    if wanted.topic is not None:
        asked.add(parse(wanted.topic)[0].dlq)
    for name in asked:
        if name not in known:
            raise InvalidParameter("topic", name, ", ".join(known))
    return sorted(asked) or list(known)


@dataclass(frozen=True, slots=True)
class Standing:
    """A letter and what became of it: `open`, `refused again`, or where it was put."""

    letter: Letter
    marks: tuple[Letter, ...]
    again: tuple[Letter, ...]

    @property
    def state(self) -> str:
        if self.again:
            return AGAIN
        return f"re-driven {self.marks[-1].detail}" if self.marks else OPEN

    @property
    def redriven(self) -> bool:
        return bool(self.marks)


def standings(found: Iterable[Letter]) -> Iterator[Standing]:
    """Each letter with the marks about it and the letters it came back as, in the order given.

    After a crash the same records are refused again: their later letters are left out.
    """
    letters, marks, again = [], dict[str, list[Letter]](), dict[str, list[Letter]]()
    seen: set[tuple[str, str, int, int]] = set()
    for letter in found:
        if letter.reason == REDRIVEN:
            marks.setdefault(letter.first or "", []).append(letter)
            continue
        place = (letter.log_epoch, letter.log_topic, letter.log_partition, letter.log_offset)
        if letter.log_offset >= 0 and place in seen:
            continue
        seen.add(place)
        letters.append(letter)
        if letter.first is not None:
            again.setdefault(letter.first, []).append(letter)
    for letter in letters:
        ident = letter.ident
        yield Standing(letter, tuple(marks.get(ident, ())), tuple(again.get(ident, ())))
