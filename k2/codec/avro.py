"""Wire values to Arrow and back, for the records of one schema.

A batch is decoded in one call. Only when something in it is not as expected are its values looked
at one by one: other schema ids are read with their own schema and brought to ours, what is not a
record is named with its reason, and neither spoils its neighbours.

pyruhvro holds no GIL while it works, so a thread per partition batch scales.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2.clock import SYSTEM_CLOCK, Clock
from k2.codec import wire
from k2.codec.compat import incompatibilities
from k2.codec.engines import FastEngine, Malformed, SlowEngine
from k2.codec.registry import SchemaRegistry
from k2.codec.resolve import Step, column_plan, project
from k2.codec.wire import MAX_SCHEMA_ID, Bad, DecodeReason, sort_by_schema
from k2.errors import SchemaError, SchemaNotFoundError

#: Schema ids nobody registered that are remembered, so that garbage does not ask the registry
#: for each record. Beyond it the oldest are forgotten.
_UNKNOWN_REMEMBERED = 1_024
#: … and for how long: a registry's replica may learn of a schema a moment after its producer.
_UNKNOWN_S = 30.0
#: Looking for bad values: into how many parts a refused range is cut, and how many values are
#: judged one by one. A call has a fixed cost of 40 µs, so halving down to one costs twice as much.
_SPLIT = 8
_LEAF = 8


@dataclass(frozen=True, slots=True)
class Decoded:
    """`batch`: the good rows; `rows`: int64 indexes of them in the input; `bad`: the others."""

    batch: pa.RecordBatch
    rows: npt.NDArray[np.int64]
    bad: list[Bad] = field(default_factory=list)


class Codec:
    """Decodes and encodes the records of one registered schema.

    `schema` is the Arrow schema of decoded batches. Not for concurrent use of `decode` from several
    threads on first sight of a schema id; reading is otherwise free of shared state.
    """

    def __init__(
        self,
        registry: SchemaRegistry,
        schema_text: str,
        schema_id: int,
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._clock = clock
        self._registry = registry
        self._text = schema_text
        self.schema_id = schema_id
        self._own = _Lane(schema_text, schema_id, schema_text)
        self._lanes: dict[int, _Lane | Bad] = {schema_id: self._own}
        self._unknown: dict[int, float] = {}
        self.schema = self._own.schema

    @classmethod
    def open(cls, registry: SchemaRegistry, subject: str, schema_text: str) -> Self:
        """Register the schema under its subject and build its codec. Raises `SchemaError`."""
        return cls(registry, schema_text, registry.register(subject, schema_text))

    def decode_fast(self, values: Sequence[bytes | None]) -> Decoded | None:
        """Decode values that are all sound and all of our schema; None otherwise. Never blocks."""
        try:
            batch = self._own.engine.read(values)
        except Malformed:
            return None
        return Decoded(batch, np.arange(len(values)))

    def decode(self, values: Sequence[bytes | None]) -> Decoded:
        """Decode any values. May ask the registry once per new schema id, which blocks.

        Raises `SchemaError` only when the registry cannot be asked: a value is never bad because
        the registry is down.
        """
        fast = self.decode_fast(values)
        return self._decode_apart(values) if fast is None else fast

    def may_ask(self, values: Sequence[bytes | None]) -> bool:
        """True when decoding `values` may ask the registry about a schema, which blocks."""
        heads = {value[: wire.HEADER.size] for value in values if value is not None}
        own = wire.header(self.schema_id)
        return any(
            len(head) == wire.HEADER.size and wire.HEADER.unpack(head)[1] not in self._lanes
            for head in heads
            if head != own
        )

    def encode(self, batch: pa.RecordBatch) -> list[bytes]:
        """Wire values of the rows. Raises `SchemaError` naming the column that does not fit."""
        return self._own.engine.write(self._checked(batch))

    def _checked(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        missing = set(self.schema.names) - set(batch.schema.names)
        if missing:
            raise SchemaError(
                f"a batch with the columns {', '.join(batch.schema.names)} is not encodable; "
                f"it lacks {', '.join(sorted(missing))}"
            )
        columns = [_fitting(batch.column(entry.name), entry) for entry in self.schema]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _decode_apart(self, values: Sequence[bytes | None]) -> Decoded:
        by_schema = sort_by_schema(values)
        bad, batches, rows = by_schema.bad, [], []
        for schema_id, indexes in by_schema.rows.items():
            lane = self._lane(schema_id)
            if isinstance(lane, Bad):
                bad.extend(Bad(index, lane.reason, lane.detail) for index in indexes)
                continue
            group = np.array(indexes, np.int64)
            part = lane.decode([values[index] for index in indexes])
            bad.extend(Bad(indexes[row], reason, detail) for row, reason, detail in part.bad)
            batches.append(part.batch)
            rows.append(group[part.rows])
        return _joined(batches, rows, sorted(bad), self.schema)

    def _lane(self, schema_id: int) -> _Lane | Bad:
        lane = self._lanes.get(schema_id)
        if lane is not None:
            return lane
        unknown = Bad(0, DecodeReason.UNKNOWN_SCHEMA, f"no schema has the id {schema_id}")
        now = self._clock.monotonic_s()
        if not 0 < schema_id <= MAX_SCHEMA_ID or self._unknown.get(schema_id, now) > now:
            return unknown
        try:
            text = self._registry.schema(schema_id)
        except SchemaNotFoundError:
            self._remember_unknown(schema_id, now + _UNKNOWN_S)
            return unknown
        self._lanes[schema_id] = lane = self._new_lane(schema_id, text)
        return lane

    def _new_lane(self, schema_id: int, text: str) -> _Lane | Bad:
        reasons = incompatibilities(self._text, text)
        if reasons:
            detail = f"schema {schema_id} is not readable here: {reasons[0]}"
            return Bad(0, DecodeReason.WRONG_SCHEMA, detail)
        return _Lane(text, schema_id, self._text)

    def _remember_unknown(self, schema_id: int, until_s: float) -> None:
        self._unknown.pop(schema_id, None)
        if len(self._unknown) >= _UNKNOWN_REMEMBERED:
            del self._unknown[next(iter(self._unknown))]
        self._unknown[schema_id] = until_s


class _Lane:
    """Records of one writer's schema, read as records of the reader's schema."""

    def __init__(self, writer: str, schema_id: int, reader: str) -> None:
        same = writer == reader
        self._slow = SlowEngine(writer, schema_id, None if same else reader)
        self._steps: list[Step] | None = None if same else column_plan(writer, reader)
        fast = FastEngine.reads(writer) and (same or self._steps is not None)
        self.engine: FastEngine | SlowEngine = FastEngine(writer, schema_id) if fast else self._slow
        self.schema = self._slow.schema

    def decode(self, values: Sequence[bytes | None]) -> Decoded:
        """Values that all have this lane's header."""
        if isinstance(self.engine, SlowEngine):
            batch, good, bad = self._slow.read_each(values)
            return Decoded(batch, np.array(good, np.int64), bad)
        batch, rows = _sift(self.engine, values)
        if self._steps is not None:
            batch = project(batch, self._steps, self.schema)
        if len(rows) == len(values):
            return Decoded(batch, rows)
        culprits = np.delete(np.arange(len(values)), rows)
        rescued, good, bad = self._slow.read_each([values[row] for row in culprits.tolist()])
        named = [Bad(int(culprits[row]), reason, detail) for row, reason, detail in bad]
        return _joined([batch, rescued], [rows, culprits[good]], named, self.schema)


def _sift(
    engine: FastEngine, values: Sequence[bytes | None]
) -> tuple[pa.RecordBatch, npt.NDArray[np.int64]]:
    """(records of the values the engine reads, their rows)."""
    rows = np.delete(np.arange(len(values)), _isolated(engine.probe, values))
    while True:
        sound = [values[row] for row in rows.tolist()]
        try:
            return engine.read(sound), rows
        except Malformed as signal:
            # Each check comes after the one before has passed for all: so more than one turn.
            named = signal.rows if signal.rows is not None else _isolated(engine.read, sound)
            rows = np.delete(rows, named)


def _isolated(
    read: Callable[[Sequence[bytes | None]], object], values: Sequence[bytes | None]
) -> list[int]:
    """Rows among which are all that `read` refuses; the reference judges each of them."""
    found: list[int] = []
    pending = [(0, len(values))] if values else []
    while pending:
        start, stop = pending.pop()
        try:
            read(values[start:stop])
        except Malformed:
            if stop - start <= _LEAF:
                found.extend(range(start, stop))
                continue
            step = max(-(-(stop - start) // _SPLIT), _LEAF)
            pending += [(at, min(at + step, stop)) for at in range(start, stop, step)]
    return found


def _fitting(column: pa.Array, entry: pa.Field) -> pa.Array:
    """The column in the schema's type, without nulls where it may have none."""
    if column.type != entry.type:
        try:
            column = column.cast(entry.type)
        except pa.ArrowException as exc:
            raise SchemaError(f"column {entry.name!r} is not {entry.type}: {exc}") from exc
    nulls = 0 if entry.nullable else column.null_count
    if pa.types.is_map(entry.type):
        nulls += column.items.null_count
    elif pa.types.is_list(entry.type):
        nulls += column.flatten().null_count
    if nulls:
        # The encoder would write an empty string or 0 in place of each.
        raise SchemaError(f"column {entry.name!r} has nulls ({nulls}); it must have none")
    return column


def _joined(
    batches: list[pa.RecordBatch],
    rows: list[npt.NDArray[np.int64]],
    bad: list[Bad],
    schema: pa.Schema,
) -> Decoded:
    """Parts put together again in the order of the input."""
    if not batches:
        empty = [pa.array([], type_) for type_ in schema.types]
        return Decoded(pa.RecordBatch.from_arrays(empty, schema=schema), np.empty(0, np.int64), bad)
    if len(batches) == 1:
        return Decoded(batches[0], rows[0], bad)
    places = np.concatenate(rows)
    order = np.argsort(places, kind="stable")
    whole = pa.concat_batches(batches)
    return Decoded(whole.take(pa.array(order)), places[order], bad)
