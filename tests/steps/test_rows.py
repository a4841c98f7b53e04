"""Rows: what of a batch is new, as rows of the lake."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from k2.codec.avro import Codec
from k2.codec.schemas import schema_text
from k2.codec.wire import DecodeReason, header
from k2.codecs import Codecs
from k2.errors import DecodeError, SchemaNotFoundError
from k2.pipeline.cover import CoverReader
from k2.pipeline.groups import Cut, Records, in_groups
from k2.steps.row_cache import RowCache
from k2.steps.rows import RowReader
from k2.testing.log import MemoryLog
from tests.steps.parts import EPOCH, OTHER_EPOCH, TRADES, trade_rows

AT_US = 1_723_161_253_000_000


async def write(
    log: MemoryLog, codecs: Codecs, ids: list[int], first: int, last: int, epoch: str = EPOCH
) -> None:
    """Groups covering `first..last`; ids and offsets are the same."""
    values = codecs.of(TRADES.log).encode(trade_rows([("BTCUSDT", i) for i in ids], AT_US))
    records = Records(np.array(ids, np.int64), [b"BTCUSDT"] * len(ids), list(values))
    for group in in_groups(
        records,
        topic=TRADES.validated,
        partition=0,
        epoch=epoch,
        first=first,
        last=last,
        cut=Cut(3, 1_000_000),
    ):
        await log.send_batch(group)


async def test_groups_become_rows_with_the_position_after_them(
    log: MemoryLog, codecs: Codecs
) -> None:
    await write(log, codecs, [0, 1, 3, 4, 6], 0, 9)
    cover = CoverReader(TRADES.validated, 0)
    (part,) = codecs.reader(TRADES.validated).read(log.batch(TRADES.validated), cover)
    assert part.rows["platform_sequence"].to_pylist() == [0, 1, 3, 4, 6]
    assert part.rows["trade_id"].to_pylist() == ["0", "1", "3", "4", "6"]
    assert set(part.rows["log_topic"].to_pylist()) == {TRADES.log}
    assert (part.epoch, part.next_offset, part.last) == (EPOCH, 5, 9)
    assert cover.applied == {EPOCH: 9}


async def test_a_range_without_records_only_moves_the_position(
    log: MemoryLog, codecs: Codecs
) -> None:
    await write(log, codecs, [], 0, 9)
    (part,) = codecs.reader(TRADES.validated).read(
        log.batch(TRADES.validated), CoverReader(TRADES.validated, 0)
    )
    assert (part.rows.num_rows, part.next_offset, part.last) == (0, 1, 9)


async def test_what_was_applied_is_left_out_also_in_the_middle_of_a_group(
    log: MemoryLog, codecs: Codecs
) -> None:
    await write(log, codecs, [0, 1, 2], 0, 2)
    await write(log, codecs, [1, 2, 3], 1, 3)
    cover = CoverReader(TRADES.validated, 0)
    reader = codecs.reader(TRADES.validated)
    (part,) = reader.read(log.batch(TRADES.validated), cover)
    assert part.rows["platform_sequence"].to_pylist() == [0, 1, 2, 3]
    assert reader.read(log.batch(TRADES.validated), cover) == []


async def test_each_incarnation_of_a_log_is_a_part_of_its_own(
    log: MemoryLog, codecs: Codecs
) -> None:
    await write(log, codecs, [0, 1], 0, 1)
    await write(log, codecs, [0], 0, 0, epoch=OTHER_EPOCH)
    await write(log, codecs, [2, 3], 2, 3)
    parts = codecs.reader(TRADES.validated).read(
        log.batch(TRADES.validated), CoverReader(TRADES.validated, 0)
    )
    assert [(p.epoch, p.rows["platform_sequence"].to_pylist(), p.next_offset) for p in parts] == [
        (EPOCH, [0, 1], 2),
        (OTHER_EPOCH, [0], 3),
        (EPOCH, [2, 3], 5),
    ]
    assert all(
        part.rows["log_epoch"].to_pylist() == [part.epoch] * part.rows.num_rows for part in parts
    )


async def test_who_reads_the_same_records_later_in_other_pieces_gets_the_same_rows(
    log: MemoryLog, codecs: Codecs
) -> None:
    await write(log, codecs, [0, 1, 2], 0, 2)
    (first,) = codecs.reader(TRADES.validated).read(
        log.batch(TRADES.validated), CoverReader(TRADES.validated, 0)
    )
    (again,) = codecs.reader(TRADES.validated).read(
        log.batch(TRADES.validated), CoverReader(TRADES.validated, 0)
    )
    assert again.rows is first.rows
    (rest,) = codecs.reader(TRADES.validated).read(
        log.batch(TRADES.validated), CoverReader(TRADES.validated, 0, {EPOCH: 0})
    )
    assert rest.rows["platform_sequence"].to_pylist() == [1, 2]


async def test_a_record_that_does_not_decode_is_named(log: MemoryLog, codecs: Codecs) -> None:
    await write(log, codecs, [5, 6], 5, 6)
    batch = log.batch(TRADES.validated)
    batch.values[1] = b"?"
    with pytest.raises(DecodeError, match=r"validated\[0\]: the record of log offset 6"):
        codecs.reader(TRADES.validated).read(batch, CoverReader(TRADES.validated, 0))


async def test_what_may_ask_the_registry_runs_in_a_thread(log: MemoryLog, codecs: Codecs) -> None:
    class Noting:
        thread: int | None = None

        def register(self, subject: str, schema: str) -> int:
            return 5

        def schema(self, schema_id: int) -> str:
            self.thread = threading.get_ident()
            raise SchemaNotFoundError("no such schema")

    registry = Noting()
    codec = Codec(registry, schema_text("trades"), 5)  # type: ignore[arg-type]
    reader = RowReader("trades", codec, RowCache())
    await write(log, codecs, [0], 0, 0)
    batch = log.batch(TRADES.validated, 0)
    batch.values[0] = header(6) + b"x"
    with pytest.raises(DecodeError, match=DecodeReason.UNKNOWN_SCHEMA):
        await reader.read_async(batch, CoverReader(TRADES.validated, 0))
    assert registry.thread not in (None, threading.get_ident())
