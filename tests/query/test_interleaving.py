"""Any interleaving of produce, read, commit, compact, expire and query equals one plain list.

On a real lake with real maintenance; `test_seam.py` does the same with thousands of steps on a
model of it.
"""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from k2.lake.history import Retention
from k2.lake.tables import TRADES
from k2.lake.vector import Place
from k2.maintenance.keeper import Keeper, KeeperOptions
from k2.maintenance.plan import CompactionPolicy
from k2.query.asked import RecordsQuery
from tests.query.conftest import Platform
from tests.query.rows import T0_US, rows, upto

_ORDER = ("timestamp", "platform_sequence", "log_partition", "log_topic", "log_epoch")
_DAY_US = 86_400_000_000
_TOPIC = "market.crypto.trades.binance.validated"
_EXAMPLES = itertools.count()


class Interleaving(RuleBasedStateMachine):
    """`log`: the plain list, per place; `stored` and `read`: how much lake and tail have of it."""

    def __init__(self, platform: Platform) -> None:
        super().__init__()
        self.platform = platform
        number = next(_EXAMPLES)
        # Its own symbols and epoch: the lake still has the rows of the examples before.
        self.symbols = [f"E{number}{letter}USDT" for letter in "ABC"]
        epoch = f"00000000-0000-0000-0000-{number:012d}"
        self.places = [Place(epoch, _TOPIC, partition) for partition in (0, 1)]
        self.log: dict[Place, list[pa.Table]] = {one: [] for one in self.places}
        self.stored = dict.fromkeys(self.places, 0)
        self.read = dict.fromkeys(self.places, 0)
        self.seen = dict.fromkeys(self.places, 0)
        self.now_s = 0.0
        platform.refresh()
        self.keeper = Keeper(
            platform.catalog,
            TRADES,
            KeeperOptions(
                CompactionPolicy(min_files=2, min_files_closed=2),
                Retention(all_ms=0, all_count=1),
            ),
        )
        for one in self.places:
            platform.tails["trades"].start(one, -1)

    @rule(
        which=st.integers(0, 1),
        trades=st.lists(
            st.tuples(st.integers(0, 2), st.sampled_from([0, 1, 2, _DAY_US])),
            min_size=1,
            max_size=6,
        ),
    )
    def produce(self, which: int, trades: list[tuple[int, int]]) -> None:
        place = self.places[which]
        for symbol, at_us in trades:
            sequence = len(self.log[place])
            one = rows([sequence], [T0_US + at_us], symbols=self.symbols[symbol],
                       partition=which, epoch=place.epoch)  # fmt: skip
            self.log[place].append(one)

    @rule(which=st.integers(0, 1), count=st.integers(1, 8))
    def tail_reads(self, which: int, count: int) -> None:
        place = self.places[which]
        first = self.read[place]
        found = self.log[place][first : first + count]
        if found:
            self.platform.produce(pa.concat_tables(found), place, now_s=self.now_s)
            self.read[place] += len(found)

    @rule(which=st.integers(0, 1), count=st.integers(1, 8))
    def commit(self, which: int, count: int) -> None:
        place = self.places[which]
        first = self.stored[place]
        found = self.log[place][first : first + count]
        if found:
            writer = self.platform.writers["trades"]
            base = upto(first - 1) if first else None
            self.stored[place] += len(found)
            reached = upto(self.stored[place] - 1)
            writer.commit(pa.concat_tables(found), {place: base}, {place: reached})

    @rule()
    def compact(self) -> None:
        self.keeper.compact()

    @rule()
    def expire(self) -> None:
        self.keeper.expire()

    @rule()
    def refresh(self) -> None:
        self.platform.refresh()
        self.seen = dict(self.stored)

    @rule(minutes=st.sampled_from([0.0, 15.0]), passed_s=st.floats(0, 90))
    def trim(self, minutes: float, passed_s: float) -> None:
        self.now_s += passed_s
        committed = self.platform.engine.committed("trades")
        self.platform.tails["trades"].trim(
            self.now_s, committed, max_minutes=minutes, max_bytes=10**9
        )

    @rule(
        wanted=st.sets(st.integers(0, 2), min_size=1),
        limit=st.integers(1, 30),
        newest_first=st.booleans(),
    )
    def query(self, wanted: set[int], limit: int, newest_first: bool) -> None:
        symbols = frozenset(self.symbols[index] for index in wanted)
        plain = self.expected(symbols)
        engine = self.platform.engine
        asked = RecordsQuery(symbols=symbols, limit=limit, newest_first=newest_first)
        found = asyncio.run(engine.records("trades", asked))
        assert not found.partial
        known = engine.hot_records("trades", asked)
        if known is not None:
            assert known.rows.table(found.rows.schema).equals(found.rows)
        ordered = plain[::-1] if newest_first else plain
        assert found.rows.to_pylist() == ordered[:limit]
        names = ", ".join(f"'{name}'" for name in sorted(symbols))
        text = f"SELECT count(*) n, count(DISTINCT (log_partition, platform_sequence)) d FROM trades WHERE symbol IN ({names})"  # noqa: E501
        counted = asyncio.run(engine.sql(text, limit=1)).rows.to_pylist()
        assert counted == [{"n": len(plain), "d": len(plain)}]
        last = {row["symbol"]: row for row in plain}
        latest = asyncio.run(engine.latest("trades", symbols)).rows.to_pylist()
        assert latest == [last[name] for name in sorted(last)]

    def expected(self, symbols: frozenset[str]) -> list[dict[str, Any]]:
        """The plain list, sorted: what the tail has read, and what a known snapshot holds."""
        tables = [TRADES.arrow_schema.empty_table()]
        for place in self.places:
            tables += self.log[place][: max(self.read[place], self.seen[place])]
        found = [row for row in pa.concat_tables(tables).to_pylist() if row["symbol"] in symbols]
        return sorted(found, key=lambda row: tuple(row[name] for name in _ORDER))

    def teardown(self) -> None:
        # The tail may let go only of what is stored.
        for which in (0, 1):
            self.commit(which, 10**6)
        self.platform.refresh()
        self.platform.tails["trades"].forget(frozenset(), self.platform.engine.committed("trades"))


def test_any_interleaving_equals_a_plain_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = Platform(tmp_path / "data", monkeypatch)
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        lambda: Interleaving(platform),
        settings=settings(
            max_examples=15,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
    platform.close()
