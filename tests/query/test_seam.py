"""Any interleaving of produce, read, commit, compact, expire, trim, restart and query equals one
plain list: a model of the lake, so that thousands of steps are tried."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from k2.lake.vector import Place, Position, Vector
from k2.query import seam
from k2.query.tail import Tail
from tests.query.rows import EPOCH, OTHER_EPOCH

SCHEMA = pa.schema(
    [
        ("timestamp", pa.timestamp("us", "UTC")),
        ("symbol", pa.string()),
        ("where", pa.string()),
        ("platform_sequence", pa.int64()),
    ]
)
#: Few, so that every one of them sees all that can happen.
PLACES = [
    Place(EPOCH, "market.crypto.trades.binance.validated", 0),
    Place(EPOCH, "market.crypto.trades.binance.validated", 1),
    Place(OTHER_EPOCH, "market.crypto.trades.binance.validated", 0),
]
Key = tuple[Place, int]


class Snap:
    def __init__(self, snapshot_id: int, vector: Vector, keys: frozenset[Key]) -> None:
        self.snapshot_id, self.vector, self.keys = snapshot_id, vector, keys
        self.cost = 0


def to_rows(where: Place, kept: list[int]) -> pa.RecordBatch:
    return pa.record_batch(
        [
            pa.array(kept, pa.timestamp("us", "UTC")),
            pa.array([f"S{s % 3}" for s in kept]),
            pa.array([repr(where)] * len(kept)),
            pa.array(kept, pa.int64()),
        ],
        schema=SCHEMA,
    )


class Interleaving(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.log: dict[Place, list[tuple[int, list[int]]]] = {place: [] for place in PLACES}
        self.stored = dict.fromkeys(PLACES, 0)
        self.snapshots = [Snap(0, Vector.empty(), frozenset())]
        self.now_s = 0.0
        self.restart()

    @rule()
    def restart(self) -> None:
        newest = self.snapshots[-1].vector
        self.tail = Tail(SCHEMA)
        self.read = dict(self.stored)
        for place in PLACES:
            at = newest.get(place)
            self.tail.start(place, -1 if at is None else at.sequence)

    @rule(
        place=st.sampled_from(PLACES),
        covers=st.lists(st.lists(st.booleans(), min_size=1, max_size=5), min_size=1, max_size=4),
    )
    def produce(self, place: Place, covers: list[list[bool]]) -> None:
        groups = self.log[place]
        for kept in covers:
            first = groups[-1][0] + 1 if groups else 0
            survivors = [first + i for i, keep in enumerate(kept) if keep]
            groups.append((first + len(kept) - 1, survivors))

    @rule(place=st.sampled_from(PLACES), count=st.integers(1, 8), replay=st.booleans())
    def tail_read(self, place: Place, count: int, replay: bool) -> None:
        start = max(0, self.read[place] - 1) if replay else self.read[place]
        for last, kept in self.log[place][start : start + count]:
            self.tail.add(place, to_rows(place, kept), last=last, now_s=self.now_s)
        done = min(len(self.log[place]), start + count)
        self.read[place] = max(self.read[place], done)

    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        before = self.snapshots[-1]
        moved: dict[Place, Position] = {}
        keys = set(before.keys)
        for place in PLACES:
            todo = self.log[place][self.stored[place] :]
            take = data.draw(st.integers(0, len(todo))) if todo else 0
            rows = [s for _, kept in todo[:take] for s in kept]
            if rows:
                self.stored[place] += take
                moved[place] = Position(self.stored[place], rows[-1])
                keys.update((place, s) for s in rows)
        snap = Snap(before.snapshot_id + 1, before.vector.advanced(moved), frozenset(keys))
        self.snapshots = [*self.snapshots[-3:], snap]

    @rule()
    def compact(self) -> None:
        """The same rows and the same vector under a new id."""
        before = self.snapshots[-1]
        snap = Snap(before.snapshot_id + 1, before.vector, before.keys)
        self.snapshots = [*self.snapshots[-3:], snap]

    @rule(count=st.integers(1, 4))
    def expire(self, count: int) -> None:
        """All but the newest may go."""
        self.snapshots = self.snapshots[-count:]

    @rule(seconds=st.floats(0, 90))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(minutes=st.sampled_from([0.0, 0.5, 15.0]), cap=st.sampled_from([0, 400, 10**9, 10**9]))
    def trim(self, minutes: float, cap: int) -> None:
        committed = self.snapshots[-1].vector
        lost = self.tail.stats().lost
        after = self.tail.trim(self.now_s, committed, max_minutes=minutes, max_bytes=cap)
        assert after.nbytes <= cap
        if cap == 10**9:
            # Without pressure nothing leaves before the lake has it.
            assert after.lost == lost

    @rule(data=st.data(), cap=st.sampled_from([None, 0, 5]))
    def query(self, data: st.DataObject, cap: int | None) -> None:
        candidates = self.snapshots[::-1]
        costs = data.draw(st.permutations(range(len(candidates))))
        for candidate, cost in zip(candidates, costs, strict=True):
            candidate.cost = cost
        pinned = seam.pin(candidates, self.tail.view(), max_hot_rows=cap)
        hot = [
            (row["where"], row["platform_sequence"])
            for row in pinned.hot().select([2, 3]).to_pylist()
        ]
        cold = [(repr(place), s) for place, s in pinned.snapshot.keys]
        union = cold + hot
        assert len(set(union)) == len(union), "a double"
        assert pinned.as_of()["hot_rows"] == len(hot)
        if not pinned.partial:
            assert sorted(union) == sorted(self.expected(pinned)), "a hole"
        assert set(union) <= set(self.expected(pinned))

    def expected(self, pinned: seam.Pin[Snap]) -> list[tuple[str, int]]:
        out = []
        for place in PLACES:
            # Not the pinned snapshot's: an older one must not show less than the newest has.
            at = self.snapshots[-1].vector.get(place)
            hot = pinned.view.places[place]
            reach = max(hot.high, -1 if at is None else at.sequence)
            out += [(repr(place), s) for _, kept in self.log[place] for s in kept if s <= reach]
        return out


Interleaving.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestInterleaving = Interleaving.TestCase
