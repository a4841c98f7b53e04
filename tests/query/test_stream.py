"""What a follower gives: every row once, in order, also when partitions come and rows go."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from k2.lake.tables import TRADES
from k2.lake.vector import Place
from k2.query.stream import Follower
from k2.query.tail import Tail
from tests.query.rows import T0_US, batch, place, rows


def tail_of(*places: Place) -> Tail:
    tail = Tail(TRADES.arrow_schema)
    for one in places:
        tail.start(one, -1)
    return tail


def add(tail: Tail, at: Place, sequences: list[int], **more: Any) -> None:
    stamps = [T0_US + sequence * 1_000 for sequence in sequences]
    table = rows(sequences, stamps, **more)
    tail.add(at, batch(table), last=sequences[-1], now_s=0.0)


def ids(table: pa.Table) -> list[int]:
    return table.column("platform_sequence").to_pylist()


def test_snapshot_then_news_without_hole_or_double() -> None:
    tail = tail_of(place())
    add(tail, place(), [1, 2, 3])
    follower = Follower(None, 100)
    assert ids(follower.begin(tail.view(), 2)) == [2, 3]
    add(tail, place(), [4, 5])
    assert ids(follower.news(tail.view()).rows) == [4, 5]
    assert ids(follower.news(tail.view()).rows) == []


def test_what_waits_is_counted_before_it_is_looked_at() -> None:
    tail = tail_of(place(), place(1))
    add(tail, place(), [1, 2, 3])
    follower = Follower(None, 100)
    follower.begin(tail.view(), 0)
    assert follower.waiting(tail.view()) == 0
    add(tail, place(), [4, 5])
    add(tail, place(1), [1], partition=1)
    assert follower.waiting(tail.view()) == 3
    follower.news(tail.view())
    assert follower.waiting(tail.view()) == 0


def test_only_the_symbols_asked_for() -> None:
    tail = tail_of(place())
    follower = Follower(frozenset({"ETHUSDT"}), 100)
    follower.begin(tail.view(), 0)
    add(tail, place(), [1, 2], symbols="BTCUSDT")
    add(tail, place(), [3], symbols="ETHUSDT")
    assert ids(follower.news(tail.view()).rows) == [3]


def test_a_slow_reader_goes_on_with_the_newest_and_is_told() -> None:
    tail = tail_of(place())
    follower = Follower(None, 3)
    follower.begin(tail.view(), 0)
    add(tail, place(), [1, 2, 3, 4, 5])
    news = follower.news(tail.view())
    assert (ids(news.rows), news.skipped) == ([3, 4, 5], 2)


@given(
    steps=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), min_size=1, max_size=12),
    looks=st.sets(st.integers(0, 11)),
)
def test_whatever_the_interleaving_each_row_comes_once(
    steps: list[tuple[int, int]], looks: set[int]
) -> None:
    places = [place(partition=number) for number in range(3)]
    tail = tail_of(*places)
    follower = Follower(None, 1_000)
    follower.begin(tail.view(), 0)
    at = dict.fromkeys(places, 0)
    written: list[tuple[int, int]] = []
    seen: list[tuple[int, int]] = []

    def look() -> None:
        news = follower.news(tail.view())
        assert news.skipped == 0
        partitions = news.rows.column("log_partition").to_pylist()
        seen.extend(zip(partitions, ids(news.rows), strict=True))

    for number, (which, count) in enumerate(steps):
        one = places[which]
        sequences = list(range(at[one] + 1, at[one] + count + 1))
        at[one] += count
        add(tail, one, sequences, partition=which)
        written += [(which, sequence) for sequence in sequences]
        if number in looks:
            look()
    look()
    assert sorted(seen) == sorted(written)
    for which in range(3):
        own = [sequence for partition, sequence in seen if partition == which]
        assert own == sorted(own), "order within a partition is the log's"
