"""Maintenance in every order, against a plain model: rows by snapshot, tags, one vector."""

import os
import shutil
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from k2.errors import LakeError, SupersededError
from k2.lake.catalog import open_catalog
from k2.lake.history import Retention, vector_at
from k2.lake.reader import LakeReader
from k2.lake.snapshot import VECTOR_TAG
from k2.lake.tables import TRADES, ensure_table
from k2.lake.vector import Vector
from k2.lake.writer import LakeWriter
from k2.maintenance.compact import Compactor
from k2.maintenance.keeper import Keeper, KeeperOptions
from k2.maintenance.plan import CompactionPolicy
from k2.maintenance.reach import Reach
from k2.maintenance.replace import ReplaceFiles
from k2.settings import load_settings
from tests.lake.rows import place, trades, upto
from tests.maintenance.lakes import stored

SYMBOLS = ("BTCUSDT", "ETHUSDT")
YEAR_S = 365 * 86_400


class Clock:
    """Far in the future of the files' times, so that every file is old enough to go."""

    def __init__(self):
        self.s = time.time() + YEAR_S

    def now_us(self):
        return int(self.s * 1e6)

    def monotonic_s(self):
        return self.s


class LakeMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="k2-orders-"))
        os.environ["K2_DATA_DIR"] = str(self.folder)
        self.catalog = open_catalog(load_settings())
        del os.environ["K2_DATA_DIR"]
        ensure_table(self.catalog, TRADES, "zstd")
        self.clock = Clock()
        policy = CompactionPolicy(min_files=3)
        retention = Retention(all_ms=60_000, all_count=3, days=3)
        options = KeeperOptions(policy=policy, retention=retention)
        waits = {"clock": self.clock, "wait": lambda _: None}
        self.keeper = Keeper(self.catalog, TRADES, options, **waits)
        self.compactor = Compactor(
            self.catalog, TRADES, policy=policy, retention=retention, **waits
        )
        self.writer = LakeWriter(self.catalog, TRADES, retention=retention, **waits)
        self.next_id = 0
        self.rows: frozenset[int] = frozenset()
        self.by_snapshot: dict[int, frozenset[int]] = {}
        self.tags: dict[str, int] = {}
        self.flying: list[tuple[ReplaceFiles, set[str]]] = []

    def teardown(self):
        self.catalog.close()
        shutil.rmtree(self.folder)

    def table(self):
        return self.catalog.load_table(TRADES.identifier)

    def landed(self):
        """Main is at a new snapshot with the model's rows."""
        self.by_snapshot[self.table().current_snapshot().snapshot_id] = self.rows

    @rule(count=st.integers(1, 6), day=st.integers(0, 1))
    def append(self, count, day):
        low, high = self.next_id, self.next_id + count
        base = {place(): upto(low) if low else None}
        rows = trades(range(low, high), symbols=SYMBOLS, step_us=1 + day * 86_400_000_000 // 50)
        self.writer.commit(rows, base, {place(): upto(high)})
        self.next_id = high
        self.rows |= frozenset(range(low, high))
        self.landed()

    @rule()
    def compact(self):
        if self.keeper.compact().commits:
            self.landed()

    @rule()
    def begin_compaction(self):
        pinned, groups = self.compactor.due()
        if groups and len(self.flying) < 2:
            added, _ = self.compactor._rewrite(pinned, groups)
            removed = {file.path: file.day for group in groups for file in group.files}
            change = ReplaceFiles(TRADES, added, removed)
            self.flying.append((change, {file.file_path for file in added}))

    @precondition(lambda self: self.flying)
    @rule()
    def finish_compaction(self):
        change, written = self.flying.pop(0)
        try:
            self.keeper._loop.run(change)
        except SupersededError:
            left = {path for path in written if Path(path.removeprefix("file://")).exists()}
            assert not left
        else:
            self.landed()

    @rule()
    def rewrite_manifests(self):
        if self.rows:
            self.keeper.rewrite_manifests()
            self.landed()

    @rule(hours=st.sampled_from([0.01, 1, 5, 30]))
    def wait(self, hours):
        self.clock.s += hours * 3_600

    @rule()
    def expire(self):
        self.keeper.expire()

    @rule()
    def tag_history(self):
        self.keeper.tag_history()

    @rule(name=st.sampled_from(["a", "b", "main", "daily-x"]), data=st.data())
    def tag(self, name, data):
        snapshots = [one.snapshot_id for one in self.table().metadata.snapshots]
        chosen = data.draw(st.sampled_from([*snapshots, 7]))
        try:
            self.keeper.tag(name, str(chosen))
        except LakeError:
            assert name in ("main", "daily-x", *self.tags) or chosen == 7
        else:
            assert chosen != 7
            self.tags[name] = chosen

    @rule(name=st.sampled_from(["a", "b", VECTOR_TAG]))
    def untag(self, name):
        try:
            self.keeper.untag(name)
        except LakeError:
            assert name not in self.tags
        else:
            del self.tags[name]

    @precondition(lambda self: self.by_snapshot)
    @rule(data=st.data())
    def rollback(self, data):
        """To any snapshot there ever was; one that expired is refused."""
        chosen = data.draw(st.sampled_from(list(self.by_snapshot)))
        there = self.table().metadata.snapshot_by_id(chosen) is not None
        newest = self.table().current_snapshot().snapshot_id == chosen
        try:
            self.keeper.rollback(str(chosen))
        except LakeError:
            assert not there or newest
        else:
            self.rows = self.by_snapshot[chosen]
            self.landed()

    @precondition(lambda self: not self.flying)
    @rule()
    def orphans(self):
        self.keeper.cleaner.orphans(older_than_s=3_600)
        left = {
            str(path) for path in self.folder.joinpath("warehouse").rglob("*") if path.is_file()
        }
        needed = Reach().keys(self.table())
        assert left == needed

    @precondition(lambda self: not self.flying)
    @rule()
    def sweep(self):
        self.keeper.cleaner.sweep()

    @invariant()
    def nothing_is_lost_or_doubled(self):
        assert stored(self.catalog) == sorted(self.rows)

    @invariant()
    def the_vector_never_falls(self):
        metadata = self.table().metadata
        vector = vector_at(metadata, metadata.current_snapshot())
        expected = Vector({place(): upto(self.next_id)}) if self.next_id else Vector.empty()
        assert vector == expected

    @invariant()
    def every_snapshot_has_its_files_and_rows(self):
        table = self.table()
        for key in Reach().keys(table):
            assert Path(key).exists(), key
        for name, snapshot_id in self.tags.items():
            assert table.metadata.refs[name].snapshot_id == snapshot_id
        reader = LakeReader(self.catalog)
        for snapshot in table.metadata.snapshots:
            files = reader.files(reader.by_id(TRADES, snapshot.snapshot_id))
            assert sum(file.rows for file in files) == len(self.by_snapshot[snapshot.snapshot_id])
        if table.metadata.snapshots:
            oldest = table.metadata.snapshots[0].snapshot_id
            assert stored(self.catalog, oldest) == sorted(self.by_snapshot[oldest])


LakeMachine.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestOrders = LakeMachine.TestCase
