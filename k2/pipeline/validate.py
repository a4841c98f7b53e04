"""Validate: one partition of a log of record to validated records, dead letters and gap events.

A pure step: decode, rules, continuity, shedding by tier, groups. The same log read again from a
checkpoint gives outputs that readers recognise by their covers. Surviving records keep their bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import structlog

from k2.clock import Clock
from k2.degradation.levels import Level
from k2.degradation.shed import SHED_HEADER, Shedder, ShedRange, to_header
from k2.degradation.tiers import Tiers
from k2.errors import RetentionGapError
from k2.pipeline import checkpoint, rules
from k2.pipeline.continuity import (
    Continuity,
    Counts,
    GapEvent,
    Policy,
    Result,
    Rows,
    Seeder,
    Trimmed,
)
from k2.pipeline.dead_letter_limit import DeadLetterLimit
from k2.pipeline.examine import Decoder, Examiner
from k2.pipeline.groups import Cut, Records, in_groups
from k2.pipeline.numbering import NUMBERED, POLICIES
from k2.pipeline.side import Encoder, Refused, SideOutputs
from k2.pipeline.text_ids import TextIds, scoped
from k2.records import ID_COLUMN
from k2.topics import MarketTopic, is_tape
from k2.transport.batch import Headers, LogBatch, OutBatch

log = structlog.get_logger(__name__)

SESSION_HEADER: Final = "k2-session"

TAPE_AGE_DAYS: Final = 36_525.0

#: Reasons of dead letters besides those of codec and rules; stored, so never renamed.
ID_NOT_INTEGER: Final = "ID_NOT_INTEGER"
TOO_LARGE: Final = "TOO_LARGE"

_Offsets = npt.NDArray[np.int64]


class Options(Protocol):
    """What it needs of `k2.settings.Validate`."""

    @property
    def max_future_s(self) -> float: ...

    @property
    def max_age_days(self) -> float: ...

    @property
    def max_symbols(self) -> int: ...

    @property
    def group_records(self) -> int: ...

    @property
    def dlq_max_consecutive(self) -> int: ...

    @property
    def dlq_max_ratio(self) -> float: ...

    @property
    def dlq_window(self) -> int: ...


class LaneCodecs(NamedTuple):
    """Codecs of the log, its gaps topic and its dead-letter topic."""

    log: Decoder
    gaps: Encoder
    dead_letters: Encoder


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one batch gave.

    `outputs`: to be appended in this order, all acknowledged before a checkpoint at or above
    `next_offset` is written. `records`: how many were judged; `dead_letters`: by reason;
    `flagged`: quotes by condition; `shed` is also in the headers of `outputs`.
    """

    outputs: list[OutBatch]
    next_offset: int
    records: int = 0
    counts: Counts = field(default_factory=Counts)
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    flagged: Mapping[str, int] = field(default_factory=dict)
    gaps: Sequence[GapEvent] = ()
    shed: Sequence[ShedRange] = ()

    @property
    def missing_ids(self) -> int:
        """Ids in the gaps this batch opened."""
        return sum(e.last_id - e.first_id + 1 for e in self.gaps if e.event == "opened")


class _Judged(NamedTuple):
    """Rows (indexes in the LogBatch) that passed the rules, and their columns."""

    rows: npt.NDArray[np.int64]
    columns: dict[str, Any]
    ids: _Offsets
    refused: list[Refused]
    flagged: Mapping[str, int]
    texts: npt.NDArray[np.bool_]


class Validator:
    """State of one partition of `topic` in the incarnation `epoch`. Not for several threads.

    `tiers` None: nothing is ever shed. `seed` (by symbol) and `seed_texts` (by scope, see
    `k2.pipeline.text_ids`) are called inside `apply` and may block.
    """

    def __init__(
        self,
        topic: MarketTopic,
        partition: int,
        epoch: str,
        *,
        codecs: LaneCodecs,
        options: Options,
        clock: Clock,
        max_batch_bytes: int = 1_000_000,
        seed: Seeder | None = None,
        seed_texts: Seeder | None = None,
        tiers: Tiers | None = None,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.epoch = epoch
        self.continuity = Continuity(
            POLICIES.get((topic.exchange, topic.data_type), Policy.NONE),
            seed=seed,
            max_symbols=options.max_symbols,
        )
        self.texts = TextIds(seed=seed_texts, max_symbols=options.max_symbols)
        #: Feeds whose every id is a number; elsewhere an id may be any text.
        self._numbered = (topic.exchange, topic.data_type) in NUMBERED
        self._codec = codecs.log
        # What is loaded from files may be as old as the market.
        old = is_tape(topic) or topic.data_type == "reference_data"
        limits = rules.Ages(options.max_future_s, TAPE_AGE_DAYS if old else options.max_age_days)
        self._examiner = Examiner(topic.data_type, codecs.log, limits)
        self._cut = Cut(options.group_records, max_batch_bytes)
        self._side = SideOutputs(topic, partition, epoch, codecs, clock, self._cut)
        self._limit = DeadLetterLimit(
            options.dlq_max_consecutive, options.dlq_max_ratio, options.dlq_window
        )
        self._tiers = tiers
        self._shedder = Shedder()
        self._generation = 0
        self._fresh = True
        #: Where to read on.
        self.next_offset = 0
        #: The position of the newest checkpoint that is known to be stored.
        self.checkpointed_offset = 0

    def restore(self, entries: Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]]) -> None:
        """Go on from the newest complete checkpoint; without one, from the log's beginning.

        A checkpoint of another incarnation of the log is not ours: its offsets mean other records,
        and its ids are in the lake. Raises `LogCorruptError`.
        """
        found = checkpoint.join(dict(entries).items())
        if found is None:
            return
        self._generation, payload = found
        state = checkpoint.decode(payload)
        if state.epoch != self.epoch:
            log.info("log_began_anew", topic=self.topic.log, was=state.epoch, epoch=self.epoch)
            return
        checkpoint.load(self.continuity, state)
        if state.texts:
            checkpoint.load(self.texts, checkpoint.decode(state.texts))
        self.next_offset = self.checkpointed_offset = state.next_offset
        self._fresh = False

    def checkpoint(self) -> tuple[list[checkpoint.Entry], int]:
        """Entries to store, and the offset they stand for. Changes nothing."""
        payload = checkpoint.encode(self.continuity, self.epoch, self.next_offset, self.texts)
        return checkpoint.split(self._generation + 1, payload), self.next_offset

    def checkpointed(self, offset: int) -> None:
        """The entries of `checkpoint` are stored."""
        self._generation += 1
        self.checkpointed_offset = offset

    def trim(self, stored_through: int) -> Trimmed:
        """Hold state to its bounds; see `Continuity.trim`. Call it before a checkpoint."""
        numbers, texts = self.continuity.trim(stored_through), self.texts.trim(stored_through)
        return Trimmed(*(a + b for a, b in zip(numbers, texts, strict=True)))

    def may_ask(self, batch: LogBatch) -> bool:
        """True when judging `batch` may ask the schema registry, which blocks."""
        return self._codec.may_ask(batch.values)

    def apply(self, batch: LogBatch, level: int = Level.NORMAL) -> Outcome:
        """Judge a batch of the log of record.

        Raises `RetentionGapError` when records between the last batch and this one are gone,
        `DeadLetterLimitError` when too many are refused, and what the seeder raises; the state is
        then as before.
        """
        if batch.last_offset < self.next_offset:
            return Outcome([], self.next_offset)
        self._check_abuts(batch)
        skip = int(np.searchsorted(batch.offsets, self.next_offset))
        judged = self._judge(batch, skip)
        limit = self._limit.after(batch, skip, judged.refused)
        result = self._continue(self._rows(batch, judged, skip), judged)
        rows, shed = self._shed(batch, judged, result, level)
        first, self.next_offset, self._fresh = self.next_offset, batch.last_offset + 1, False
        self._limit = limit
        outputs = [
            *self._validated(batch, rows, first, shed),
            *self._side.dead_letters(batch, judged.refused, first),
            *self._side.gaps(result.events, first, batch.last_offset),
        ]
        return Outcome(
            outputs,
            self.next_offset,
            records=len(batch) - skip,
            counts=result.counts,
            dead_letters=Counter(refused.reason for refused in judged.refused),
            flagged=judged.flagged,
            gaps=result.events,
            shed=shed,
        )

    def _check_abuts(self, batch: LogBatch) -> None:
        if batch.first_offset <= self.next_offset:
            return
        if not self._fresh:
            raise RetentionGapError(
                f"{batch.topic}[{batch.partition}] goes on at offset {batch.first_offset}, but "
                f"{self.next_offset} is the next to validate; records between were deleted unread. "
                "Keep records longer; to go on without them, clear this partition's checkpoint",
                topic=batch.topic,
                partition=batch.partition,
                next_offset=self.next_offset,
                earliest=batch.first_offset,
            )
        # Without a checkpoint, in a log that has lost its beginning: what it brought before may be
        # in the lake, under this same incarnation.
        self.continuity.evicted = self.texts.evicted = True

    def _judge(self, batch: LogBatch, skip: int) -> _Judged:
        """Decode and apply the rules."""
        found = self._examiner.examine(batch, skip)
        verdict, ids, integer = found.verdict, found.ids, found.integer
        places = found.rows + skip
        refused = [Refused(row + skip, reason, detail) for row, reason, detail in found.bad]
        refused += [
            Refused(int(places[r]), reason, detail) for r, reason, detail in verdict.reasons
        ]
        ok = verdict.ok
        if self._numbered and not integer.all():
            refused += self._without_id(found.batch, np.flatnonzero(ok & ~integer), places)
            ok = ok & integer
        large = self._too_large(batch, places[ok])
        if large:
            refused += large
            ok = ok & ~np.isin(places, [entry.row for entry in large])
        return _Judged(
            *_chosen(found.batch, self.topic.data_type, places, ids, ok),
            sorted(refused),
            verdict.flagged,
            ~integer[ok],
        )

    def _continue(self, rows: Rows, judged: _Judged) -> Result:
        """Continuity of numbers and of other ids, each by its own state."""
        texts = judged.texts
        if not texts.any():
            return self.continuity.apply(rows)
        chosen = pa.array(texts)
        scopes, ids, known = scoped(
            self.topic.data_type,
            rows.symbols.filter(chosen),
            judged.columns["id"].filter(chosen),
            rows.timestamps_us[texts],
        )
        at = np.flatnonzero(texts)[known]
        # Should the second raise, the worker stops: both begin again at the checkpoint.
        apart = self.texts.apply(
            Rows(
                scopes.filter(pa.array(known)),
                ids[known],
                rows.timestamps_us[at],
                rows.receive_us[at],
                rows.offsets[at],
            )
        )
        numbers = self.continuity.apply(rows.only(~texts))
        keep = np.ones(len(texts), np.bool_)
        keep[~texts], keep[at] = numbers.keep, apart.keep
        unknown = int(np.count_nonzero(texts)) - len(at)
        return Result(keep, numbers.counts.plus(apart.counts, unknown), numbers.events)

    def _without_id(
        self, batch: pa.RecordBatch, rows: npt.NDArray[np.intp], places: npt.NDArray[np.int64]
    ) -> list[Refused]:
        name = ID_COLUMN[self.topic.data_type]
        column = batch.column(name)
        return [
            Refused(
                int(places[row]),
                ID_NOT_INTEGER,
                f"{name} is {column[row].as_py()[:64]!r}; {self.topic.exchange} numbers its "
                f"{self.topic.data_type} with integers below 2^63",
            )
            for row in rows.tolist()
        ]

    def _too_large(self, batch: LogBatch, places: npt.NDArray[np.int64]) -> list[Refused]:
        """Records that no group can hold: sending them would fail for ever."""
        keys, values = batch.keys, batch.values
        longest = max(map(len, filter(None, keys)), default=0)
        longest += max(map(len, filter(None, values)), default=0)
        if longest * 2 <= self._cut.max_bytes:
            return []
        return [
            Refused(
                row,
                TOO_LARGE,
                f"key and value have {len(keys[row] or b'') + len(values[row] or b'')} bytes; a "
                f"group holds {self._cut.max_bytes}, see K2_KAFKA_MAX_BATCH_BYTES",
            )
            for row in places.tolist()
            if not self._cut.fits(keys[row], values[row])
        ]

    @staticmethod
    def _rows(batch: LogBatch, judged: _Judged, skip: int) -> Rows:
        columns = judged.columns
        marks = sorted(
            (row, value)
            for row, headers in batch.headers.items()
            for name, value in headers
            if name == SESSION_HEADER and row >= skip
        )
        at = np.searchsorted(judged.rows, [row for row, _ in marks]).tolist() if marks else []
        return Rows(
            symbols=columns["symbol"],
            ids=judged.ids,
            timestamps_us=_int64(columns["timestamp"]),
            receive_us=_int64(columns["receive_timestamp"]),
            offsets=batch.offsets[judged.rows],
            backfill=columns["is_backfill"].to_numpy(zero_copy_only=False),
            sessions=[(row, name) for row, (_, name) in zip(at, marks, strict=True)],
        )

    def _shed(
        self, batch: LogBatch, judged: _Judged, result: Result, level: int
    ) -> tuple[npt.NDArray[np.int64], list[ShedRange]]:
        """Rows to emit, and what is put off. After continuity: what is put off is no gap."""
        rows = judged.rows[result.keep]
        if self._tiers is None or level < Level.GRACEFUL or not len(rows):
            return rows, []
        tiers = self._tiers.of_all(judged.columns["symbol"].filter(pa.array(result.keep)))
        mask = self._shedder.mask(level, tiers)
        if mask is None or mask.all():
            return rows, []
        shed = [
            ShedRange.of(
                self.epoch,
                self.topic.log,
                self.partition,
                int(tier),
                batch.offsets[rows[~mask & (tiers == tier)]],
            )
            for tier in np.unique(tiers[~mask])
        ]
        return rows[mask], shed

    def _validated(
        self,
        batch: LogBatch,
        rows: npt.NDArray[np.int64],
        first: int,
        shed: list[ShedRange],
    ) -> list[OutBatch]:
        def note(start: int, last: int) -> Headers:
            parts = [part for one in shed for part in _within(one, start, last)]
            return ((SHED_HEADER, to_header(parts)),) if parts else ()

        return in_groups(
            picked(batch, rows),
            topic=self.topic.validated,
            partition=self.partition,
            epoch=self.epoch,
            first=first,
            last=batch.last_offset,
            cut=self._cut,
            headers=note,
        )


_USED: Final = ("symbol", "timestamp", "receive_timestamp", "is_backfill")


def _chosen(
    batch: pa.RecordBatch,
    kind: str,
    places: npt.NDArray[np.int64],
    ids: _Offsets,
    ok: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.int64], dict[str, Any], _Offsets]:
    columns = {name: batch.column(name) for name in _USED}
    columns["id"] = batch.column(ID_COLUMN[kind])
    if ok.all():
        return places, columns, ids
    mask = pa.array(ok)
    return places[ok], {name: c.filter(mask) for name, c in columns.items()}, ids[ok]


def _int64(column: pa.Array) -> _Offsets:
    values: _Offsets = column.view(pa.int64()).to_numpy()
    return values


def picked(batch: LogBatch, rows: npt.NDArray[np.int64]) -> Records:
    """Rows of a batch that have a value, unchanged."""
    if len(rows) == len(batch):
        values = cast("list[bytes]", batch.values)
        return Records(batch.offsets, batch.keys, values, batch.timestamps_ms)
    indexes = rows.tolist()
    return Records(
        batch.offsets[rows],
        [batch.keys[row] for row in indexes],
        [value for row in indexes if (value := batch.values[row]) is not None],
        batch.timestamps_ms[rows],
    )


def _within(shed: ShedRange, first: int, last: int) -> list[ShedRange]:
    if shed.first >= first and shed.last <= last:
        return [shed]
    offsets = shed.offsets()
    part = offsets[(offsets >= first) & (offsets <= last)]
    if not len(part):
        return []
    return [ShedRange.of(shed.epoch, shed.topic, shed.partition, shed.tier, part)]
