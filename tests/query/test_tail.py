from __future__ import annotations

import random
import threading

import pyarrow as pa
import pytest

from k2.lake.tables import TRADES
from k2.lake.vector import Vector
from k2.query.chunk import Chunk
from k2.query.last_row import last_of_each
from k2.query.seam import Pin
from k2.query.tail import CHUNK_ROWS, Tail
from tests.query.rows import EPOCH, OTHER_EPOCH, T0_US, batch, place, rows, upto

WIDE = {"max_minutes": 15.0, "max_bytes": 10**9}


def add(tail: Tail, first: int, count: int, *, partition: int = 0, now_s: float = 0.0, **more):
    table = rows(range(first, first + count), [T0_US + i for i in range(count)], **more)
    where = place(partition, epoch=more.get("epoch", EPOCH))
    tail.add(where, batch(table), last=first + count - 1, now_s=now_s)


class Newest:
    snapshot_id, vector, cost = 1, Vector({place(): upto(99)}), 0


@pytest.fixture
def tail() -> Tail:
    made = Tail(TRADES.arrow_schema)
    made.start(place(), -1)
    return made


def held(tail: Tail, vector: Vector) -> list[int]:
    return sorted(tail.view().rows_above(vector)["platform_sequence"].to_pylist())


def test_the_newest_row_is_the_last_of_a_place(tail: Tail) -> None:
    assert Pin(Newest, tail.view(), partial=False).newest_us() is None
    add(tail, 0, 10)
    add(tail, 10, 5, now_s=100.0)
    add(tail, 0, 30, partition=2)
    # Rows that the lake has are seen as well as those above it.
    assert Pin(Newest, tail.view(), partial=False).newest_us() == T0_US + 29


def test_rows_above_a_vector(tail: Tail) -> None:
    add(tail, 0, 10)
    assert held(tail, Vector.empty()) == list(range(10))
    assert held(tail, Vector({place(): upto(6)})) == [7, 8, 9]
    assert held(tail, Vector({place(): upto(50)})) == []


def test_a_place_never_started_begins_at_its_first_row(tail: Tail) -> None:
    add(tail, 100, 5, partition=3)
    assert not tail.view().covers(Vector.empty())
    assert tail.view().covers(Vector({place(3): upto(99)}))


def test_rows_seen_twice_are_held_once(tail: Tail) -> None:
    add(tail, 0, 10)
    add(tail, 5, 10)
    assert held(tail, Vector.empty()) == list(range(15))


def test_a_cover_without_rows_moves_the_high_mark(tail: Tail) -> None:
    none = pa.RecordBatch.from_pylist([], schema=TRADES.arrow_schema)
    tail.add(place(), none, last=41, now_s=0)
    assert tail.view().places[place()].high == 41


def test_epochs_are_places_of_their_own(tail: Tail) -> None:
    add(tail, 0, 4)
    tail.start(place(epoch=OTHER_EPOCH), -1)
    add(tail, 0, 3, epoch=OTHER_EPOCH)
    assert held(tail, Vector({place(): upto(3)})) == [0, 1, 2]


def test_thousands_of_small_batches_become_few_chunks(tail: Tail) -> None:
    for i in range(3_000):
        add(tail, i, 1)
    stats = tail.stats()
    assert (stats.rows, stats.lost) == (3_000, 0)
    assert stats.chunks < 20
    assert held(tail, Vector({place(): upto(2_990)})) == list(range(2_991, 3_000))


def test_chunks_stay_below_their_size(tail: Tail) -> None:
    add(tail, 0, CHUNK_ROWS)
    add(tail, CHUNK_ROWS, CHUNK_ROWS)
    assert tail.stats().chunks == 2


def test_old_rows_leave_only_when_the_lake_has_them(tail: Tail) -> None:
    add(tail, 0, 10, now_s=0)
    add(tail, 10, 10, now_s=500)
    tail.trim(2_000, Vector({place(): upto(4)}), **WIDE)
    assert held(tail, Vector.empty()) == list(range(20))
    tail.trim(2_000, Vector({place(): upto(9)}), **WIDE)
    assert held(tail, Vector({place(): upto(9)})) == list(range(10, 20))
    assert not tail.view().covers(Vector.empty())
    assert tail.view().covers(Vector({place(): upto(9)}))


def test_over_the_cap_stored_rows_leave_first(tail: Tail) -> None:
    tail.start(place(1), -1)
    add(tail, 0, 100, partition=1, now_s=0)
    add(tail, 0, 100, now_s=10)
    vector = Vector({place(): upto(99)})
    one = tail.stats().nbytes // 2 + 1_000
    stats = tail.trim(10, vector, max_minutes=15, max_bytes=one)
    assert (stats.rows, stats.lost) == (100, 0)
    assert tail.view().covers(vector)


def test_over_the_cap_rows_the_lake_lacks_are_lost_and_said_so(tail: Tail) -> None:
    add(tail, 0, 100)
    stats = tail.trim(0, Vector.empty(), max_minutes=15, max_bytes=10)
    assert (stats.rows, stats.lost) == (0, 100)
    assert not tail.view().covers(Vector.empty())
    assert tail.view().covers(Vector({place(): upto(99)}))


def test_places_of_the_past_are_forgotten_when_stored(tail: Tail) -> None:
    add(tail, 0, 4)
    tail.forget(frozenset(), Vector({place(): upto(2)}))
    assert place() in tail.view().places
    tail.forget(frozenset(), Vector({place(): upto(3)}))
    assert tail.view().places == {}


def test_the_digest_names_what_was_read_not_the_snapshot(tail: Tail) -> None:
    add(tail, 0, 10)
    view = tail.view()
    assert view.digest(Vector.empty()) == view.digest(Vector({place(): upto(5)}))
    add(tail, 10, 1)
    assert tail.view().digest(Vector.empty()) != view.digest(Vector.empty())


def test_readers_never_see_half_a_change(tail: Tail) -> None:
    wrong: list[int] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            found = held(tail, Vector.empty())
            if found != list(range(len(found))):
                wrong.append(len(found))

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(200):
        add(tail, i, 1)
    stop.set()
    reader.join()
    assert wrong == []


def test_a_few_rows_do_not_keep_the_many_they_were_decoded_with(tail: Tail) -> None:
    many = batch(rows(range(2_000), [T0_US + i for i in range(2_000)]))
    tail.add(place(), many.slice(0, 2), last=1, now_s=0.0)
    [chunk] = tail.view().places[place()].chunks
    assert chunk.borrowed
    tail.trim(1.0, Vector.empty(), **WIDE)
    assert tail.view().places[place()].chunks == (chunk,)
    tail.trim(3.0, Vector.empty(), **WIDE)
    [own] = tail.view().places[place()].chunks
    assert not own.borrowed
    assert own.rows.equals(chunk.rows)
    assert held(tail, Vector.empty()) == [0, 1]


def test_what_is_known_of_chunks_is_kept_when_they_are_merged(tail: Tail) -> None:
    chance = random.Random(3)
    made = []
    for step in range(40):
        ids = range(step * 5, step * 5 + 5)
        times = [T0_US + chance.randrange(50) for _ in ids]
        made.append(rows(ids, times, symbols=[chance.choice("ABC") for _ in ids]))
        tail.add(place(), batch(made[-1]), last=ids[-1], now_s=0.0)
        if chance.random() < 0.5:
            for chunk, _ in tail.view().chunks_above(Vector.empty()):
                _ = chunk.symbols, chunk.last_rows_above(-1)
    for chunk, _ in tail.view().chunks_above(Vector.empty()):
        fresh = Chunk(chunk.rows, chunk.sequences, 0.0, 0.0)
        assert chunk.symbols == fresh.symbols
        for above in (-1, 20, int(chunk.sequences[len(chunk.sequences) // 2]), chunk.last):
            for name in chunk.symbols:
                places = chunk.places_of(frozenset(name), above).tolist()
                assert places == fresh.places_of(frozenset(name), above).tolist()
            known = {pair: row.key for pair, row in chunk.last_rows_above(above).items()}
            plain = {row.pair: row.key for row in last_of_each(chunk.above(above))}
            assert known == plain
