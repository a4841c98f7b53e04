"""The shed ledger: what was put off and has not been brought yet.

In memory, fed by the `k2-shed` headers of validated groups; its entries and marks are also records
of a compacted topic, so that a restarted worker knows them. Adding an entry again changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from k2.degradation.shed import SHED_HEADER, ShedRange, from_header
from k2.errors import DecodeError
from k2.pipeline.cover import Group
from k2.transport.batch import LogBatch

#: Key and value of a compacted topic; a value of None deletes.
Entry = tuple[bytes, bytes | None]


class LogPlace(NamedTuple):
    """One partition of one incarnation of a log of record."""

    epoch: str
    topic: str
    partition: int


def shed_in(batch: LogBatch, group: Group) -> list[ShedRange]:
    """What a group of a validated topic says was put off, without what was applied before."""
    raws = [value for name, value in batch.headers.get(group.head, ()) if name == SHED_HEADER]
    ranges = [shed.above(group.after) for raw in raws for shed in from_header(raw)]
    return [shed for shed in ranges if shed is not None]


class Ledger:
    """Entries by place, and per place how far they were brought."""

    def __init__(self) -> None:
        self._pending: dict[LogPlace, dict[tuple[int, int], ShedRange]] = {}
        self._through: dict[LogPlace, int] = {}
        #: Added up as it changes: a long overload leaves many entries, and every second asks.
        self._counts: dict[LogPlace, Counter[int]] = {}

    def add(self, shed: ShedRange) -> Entry | None:
        """Note `shed`; the record to write, or None when it is known or was brought before."""
        place = LogPlace(shed.epoch, shed.topic, shed.partition)
        entries = self._pending.setdefault(place, {})
        if shed.last <= self.through(place) or (shed.first, shed.tier) in entries:
            return None
        entries[shed.first, shed.tier] = shed
        self._counts.setdefault(place, Counter())[shed.tier] += shed.count
        return _key(place, shed), msgspec.msgpack.encode(shed)

    def pending(self, place: LogPlace) -> list[ShedRange]:
        """What is still to be brought, by rising offset."""
        entries = self._pending.get(place, {})
        return [entries[key] for key in sorted(entries)]

    def places(self) -> list[LogPlace]:
        """Places with something pending."""
        return sorted(place for place, entries in self._pending.items() if entries)

    def through(self, place: LogPlace) -> int:
        """The offset up to which everything was brought; -1: nothing."""
        return self._through.get(place, -1)

    def resolved(self, place: LogPlace, through: int) -> list[Entry]:
        """Everything up to `through` was brought; the records to write, in this order."""
        through = self._through[place] = max(through, self.through(place))
        entries = self._pending.get(place, {})
        done = [entries.pop(key) for key, shed in list(entries.items()) if shed.last <= through]
        # The mark first: entries deleted without it could be noted again by a reader of old groups.
        written: list[Entry] = [(_mark(place), msgspec.msgpack.encode((*place, through)))]
        self._uncount(place, done)
        written += [(_key(place, shed), None) for shed in done]
        return written

    def counts(self, place: LogPlace) -> dict[int, int]:
        """Records pending, by tier."""
        return dict(+self._counts.get(place, Counter()))

    def load(self, key: bytes, value: bytes | None) -> None:
        """Take a record of the compacted topic, in its order. Raises `DecodeError`."""
        try:
            if value is None:
                self._delete(key)
            elif key.startswith(b"through/"):
                epoch, topic, partition, through = msgspec.msgpack.decode(
                    value, type=tuple[str, str, int, int]
                )
                self.resolved(LogPlace(epoch, topic, partition), through)
            else:
                self.add(msgspec.msgpack.decode(value, type=ShedRange))
        except msgspec.MsgspecError as exc:
            raise DecodeError(f"record {key!r} of the shed ledger is not readable: {exc}") from exc

    def entries(self) -> list[Entry]:
        """The records that make this ledger."""
        marks: list[Entry] = [
            (_mark(place), msgspec.msgpack.encode((*place, through)))
            for place, through in sorted(self._through.items())
        ]
        return marks + [
            (
                _key(LogPlace(shed.epoch, shed.topic, shed.partition), shed),
                msgspec.msgpack.encode(shed),
            )
            for shed in self._all()
        ]

    def _all(self) -> Iterator[ShedRange]:
        for place in self.places():
            yield from self.pending(place)

    def _delete(self, key: bytes) -> None:
        for place, entries in self._pending.items():
            for name, shed in list(entries.items()):
                if _key(place, shed) == key:
                    self._uncount(place, [entries.pop(name)])

    def _uncount(self, place: LogPlace, gone: Iterable[ShedRange]) -> None:
        for shed in gone:
            self._counts[place][shed.tier] -= shed.count


def _key(place: LogPlace, shed: ShedRange) -> bytes:
    return f"shed/{_name(place)}/{shed.first}/{shed.tier}".encode()


def _mark(place: LogPlace) -> bytes:
    return f"through/{_name(place)}".encode()


def _name(place: LogPlace) -> str:
    return f"{place.epoch}/{place.topic}/{place.partition}"
