"""Sink: once in the lake; where to start is what the lake says."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from faust.types import TP

from k2.errors import CoverHoleError
from k2.lake.vector import Position
from k2.pipeline.groups import Cut, Records, in_groups
from k2.pipeline.sink import SinkPolicy
from k2.records import build
from k2.testing.clock import eventually, turns
from k2.testing.log import MemoryLog
from tests.steps.parts import (
    EPOCH,
    OTHER_EPOCH,
    QUOTES,
    TRADES,
    ids_stored,
    stored,
)
from tests.steps.sink_bench import (
    HOME,
    Bench,
    bench,
    btc,
    place,
)

__all__ = ["bench"]


async def test_what_is_held_is_acked_and_what_is_stored_may_be_committed(bench: Bench) -> None:
    await bench.write(*btc(1, 2, 3))
    assert await bench.read_on() == {}
    assert (bench.tokens.acked, bench.step.pending_rows) == ([1], 3)
    assert bench.step.ceiling(HOME) is None, "the lake has nothing of it yet"
    assert stored(bench.lake) == []
    await bench.step.flush()
    assert bench.step.pending_rows == 0
    assert bench.step.ceiling(HOME) == 3
    assert ids_stored(bench.lake) == btc(1, 2, 3)
    assert bench.step.vectors()["trades"].get(place()) == Position(3, 2)
    assert bench.lake.writers["trades"].vector().get(place()) == Position(3, 2)
    assert bench.step.read_to() == {HOME: 3}


async def test_rows_have_their_place_and_exact_values(bench: Bench) -> None:
    await bench.write(*btc(7))
    await bench.read_on()
    await bench.step.flush()
    (row,) = stored(bench.lake)
    assert (row["log_epoch"], row["log_topic"], row["log_partition"]) == (EPOCH, TRADES.log, 0)
    assert row["platform_sequence"] == 0
    assert str(row["price"]) == "61837.6300000000"
    assert row["vendor_data"] == '{"M":"true"}'


async def test_a_new_process_starts_at_the_lakes_vector(bench: Bench) -> None:
    await bench.write(*btc(1, 2, 3, 4, 5))
    await bench.read_on()
    await bench.step.flush()
    await bench.write(*btc(6, 7))
    await bench.add(5)  # read, not committed: the process dies here
    bench.restart()
    assert await bench.read_on() == {HOME: 5}
    await bench.step.flush()
    assert ids_stored(bench.lake) == btc(1, 2, 3, 4, 5, 6, 7)


async def test_groups_written_again_are_dropped_and_acked(bench: Bench) -> None:
    await bench.write(*btc(1, 2, 3, 4, 5, 6))
    await bench.read_on()
    await bench.step.flush()
    # A restarted validate step writes from its checkpoint on, cut differently.
    end = bench.log.end(*HOME)
    await bench.write(*btc(4, 5, 6), first=3, max_records=2)
    await bench.add(end)
    assert bench.tokens.acked == [1, 1], "nothing in it is new: the lake has it"
    end = bench.log.end(*HOME)
    await bench.write(*btc(5, 6, 7, 8), first=4, max_records=3)
    await bench.add(end)
    await bench.step.flush()
    assert ids_stored(bench.lake) == btc(*range(1, 9))
    assert bench.tokens.acked == [1, 1, 1]


async def test_groups_written_again_are_known_after_a_restart_too(bench: Bench) -> None:
    await bench.write(*btc(1, 2, 3))
    await bench.read_on()
    await bench.step.flush()
    await bench.write(*btc(1, 2, 3, 4), first=0)
    bench.restart()
    await bench.read_on()
    await bench.step.flush()
    assert ids_stored(bench.lake) == btc(1, 2, 3, 4)


async def test_a_hole_stops_the_sink(bench: Bench) -> None:
    await bench.write(*btc(1, 2))
    await bench.read_on()
    await bench.write(*btc(9), first=5)
    with pytest.raises(CoverHoleError):
        await bench.add(2)
    assert bench.tokens.acked == [1, 0]


async def test_gaps_need_not_abut_and_have_their_own_table(bench: Bench) -> None:
    for first, last in ((3, 4), (9, 9)):
        row = build(
            "gaps",
            1,
            {
                "message_id": f"gap-{first}",
                "symbol": "BTCUSDT",
                "exchange": "BINANCE",
                "data_type": "trades",
                "event": "opened",
                "first_id": [first],
                "last_id": [last],
                "detected_at": [bench.clock.now_us()],
                "how": "jump",
                "log_offset": [last + 1],
                "ordinal": [0],
            },
        )
        values = bench.codecs.of(TRADES.gaps).encode(row)
        for group in in_groups(
            Records(np.array([last + 1]), [b"BTCUSDT"], list(values)),
            topic=TRADES.gaps,
            partition=0,
            epoch=EPOCH,
            first=first,
            last=last + 1,
            cut=Cut(10, 1_000_000),
        ):
            await bench.log.send_batch(group)
    await bench.read_on(TP(TRADES.gaps, 0))
    await bench.step.flush()
    rows = stored(bench.lake, "gaps")
    assert [(r["expected"], r["received"], r["size"]) for r in rows] == [(3, 5, 2), (9, 10, 1)]
    assert [r["platform_sequence"] for r in rows] == [5, 10]


async def test_tables_and_partitions_are_committed_apart(bench: Bench) -> None:
    other, quotes = TP(TRADES.validated, 1), TP(QUOTES.validated, 0)
    await bench.write(*btc(1, 2))
    await bench.write(("ETHUSDT", 1), partition=1)
    await bench.write(*btc(5, 9), topic=QUOTES)
    for tp in (HOME, other, quotes):
        await bench.read_on(tp)
    await bench.step.flush()
    assert ids_stored(bench.lake) == [*btc(1, 2), ("ETHUSDT", 1)]
    assert ids_stored(bench.lake, "quotes") == btc(5, 9)
    counts = bench.step.counts()
    assert {name: (c.rows, c.commits) for name, c in counts.items()} == {
        **dict.fromkeys(counts, (0, 0)),
        "trades": (3, 1),
        "quotes": (2, 1),
    }
    bench.restart()
    tps = frozenset({HOME, other, quotes, TP(TRADES.validated, 2)})
    assert await bench.step.positions(tps) == {HOME: 2, other: 1, quotes: 2}


async def test_a_log_made_anew_begins_at_its_own_position(bench: Bench) -> None:
    await bench.write(*btc(1, 2, 3))
    await bench.read_on()
    await bench.step.flush()
    bench.log, bench.epoch, bench.written = MemoryLog(), OTHER_EPOCH, {}
    bench.restart()
    await bench.write(*btc(4, 5))
    assert await bench.read_on() == {}
    await bench.step.flush()
    assert sorted(ids_stored(bench.lake)) == btc(1, 2, 3, 4, 5)
    vector = bench.lake.writers["trades"].vector()
    assert vector.get(place()) == Position(3, 2)
    assert vector.get(place(epoch=OTHER_EPOCH)) == Position(2, 1)


async def test_what_a_zombie_of_the_old_log_still_writes_is_stored_under_its_own_epoch(
    bench: Bench,
) -> None:
    await bench.write(*btc(1, 2, 3))
    await bench.read_on()
    await bench.write(*btc(7), first=0, epoch=OTHER_EPOCH)
    await bench.write(*btc(4), first=3)
    await bench.add(3)
    await bench.step.flush()
    rows = [
        (row["log_epoch"], row["platform_sequence"], row["trade_id"]) for row in stored(bench.lake)
    ]
    assert sorted(rows) == sorted(
        [(OTHER_EPOCH, 0, "7"), *((EPOCH, i, str(i + 1)) for i in range(4))]
    )
    assert bench.tokens.acked == [1, 1]


async def test_a_batch_that_is_due_is_committed_without_asking(bench: Bench) -> None:
    bench.step.start()
    await bench.write(*btc(*range(1, 13)))
    await bench.read_on()
    await eventually(lambda: bench.step.ceiling(HOME) == 12)
    assert len(ids_stored(bench.lake)) == 12
    await bench.write(*btc(13))
    await bench.add(12)
    await turns()
    assert bench.step.ceiling(HOME) == 12, "one row waits for its interval"
    await bench.step.stop()
    assert bench.step.ceiling(HOME) == 13, "and is stored at the stop"
    assert len(ids_stored(bench.lake)) == 13


async def test_a_full_buffer_holds_reading_until_a_commit_has_landed(bench: Bench) -> None:
    bench.policy = SinkPolicy(batch_rows=10_000, interval_s=1e9, min_interval_s=0.0, max_bytes=1)
    bench.restart()
    await bench.write(*btc(1, 2))
    adding = asyncio.ensure_future(bench.read_on())
    await eventually(lambda: bench.step.pending_rows == 2)
    await turns()
    assert not adding.done()
    assert bench.tokens.acked == [1], "a rebalance need not wait for the lake"
    bench.step.start()
    await adding
    await bench.step.stop()
    assert ids_stored(bench.lake) == btc(1, 2)
