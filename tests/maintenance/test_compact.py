import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.io.pyarrow import PyArrowFile
from pyiceberg.table.snapshots import Operation

from k2.errors import LakeError
from k2.lake import files
from k2.lake.history import vector_at
from k2.lake.reader import LakeReader
from k2.lake.tables import TRADES
from k2.lake.vector import Vector
from k2.lake.writer import LakeWriter
from k2.maintenance import rewrite
from k2.maintenance.compact import Compactor
from k2.maintenance.plan import CompactionPolicy
from k2.testing.catalog import Fault, FaultyCatalog
from tests.lake.rows import place, upto
from tests.maintenance.lakes import (
    fill,
    live_files,
    on_disk,
    rows_by_duckdb,
    rows_by_pyiceberg,
    stored,
)

POLICY = CompactionPolicy(min_files=4)


def compactor(catalog, **options):
    return Compactor(
        catalog, TRADES, **{"policy": POLICY, "wait": lambda _: None, "retry_s": 30.0, **options}
    )


def head(catalog):
    table = catalog.load_table(TRADES.identifier)
    return table.metadata, table.current_snapshot()


def test_compaction_keeps_every_row_and_the_vector(catalog):
    end = fill(catalog, 8)
    before, files = rows_by_pyiceberg(catalog), len(live_files(catalog))
    report = compactor(catalog).run()
    assert report.commits == 1
    assert report.files_before + len(live_files(catalog)) == files + report.files_after
    assert len(live_files(catalog)) < files / 4
    assert rows_by_pyiceberg(catalog) == before
    metadata, snapshot = head(catalog)
    assert snapshot.summary.operation == Operation.REPLACE
    assert snapshot.summary["total-records"] == str(end)
    assert snapshot.summary["total-data-files"] == str(len(live_files(catalog)))
    assert vector_at(metadata, snapshot) == Vector({place(): upto(end)})
    duck = [(row["platform_sequence"], row["symbol"], row["price"]) for row in before]
    assert rows_by_duckdb(catalog) == duck


def test_the_sink_goes_on_after_a_compaction(catalog):
    end = fill(catalog, 5)
    compactor(catalog).run()
    end = fill(catalog, 5, start=end)
    compactor(catalog).run()
    assert stored(catalog) == list(range(end))


def test_nothing_due_commits_nothing(catalog):
    fill(catalog, 2)
    report = compactor(catalog).run()
    assert (report.groups, report.commits) == (0, 0)
    assert len(catalog.load_table(TRADES.identifier).metadata.snapshots) == 2


def test_a_dry_run_changes_nothing(catalog):
    fill(catalog, 8)
    before, files = head(catalog)[1], on_disk(catalog)
    report = compactor(catalog).run(dry_run=True)
    assert report.groups > 0
    assert report.commits == 0
    assert head(catalog)[1] == before
    assert on_disk(catalog) == files


def test_files_are_sorted_bounded_and_of_one_partition(catalog):
    fill(catalog, 8)
    compactor(catalog).run()
    reader = LakeReader(catalog)
    for file in reader.files(reader.current(TRADES)):
        rows = pq.read_table(file.path.removeprefix("file://"))
        keys = list(zip(*(rows[name].to_pylist() for name in TRADES.sort_columns), strict=True))
        assert keys == sorted(keys)
        assert file.symbols == (keys[0][0], keys[-1][0])
        times = rows["timestamp"].cast(pa.int64()).to_pylist()
        assert file.times_us == (min(times), max(times))
        assert {time // 86_400_000_000 for time in times} == {file.day}


def test_a_large_result_is_cut_at_the_target_size(catalog, monkeypatch):
    table = catalog.load_table(TRADES.identifier)
    with table.transaction() as change:
        change.set_properties({"write.parquet.row-group-limit": "20"})
    fill(catalog, 6, rows=100, symbols=("BTCUSDT",))
    before = rows_by_pyiceberg(catalog)
    largest = max(file.file_size_in_bytes for file in live_files(catalog).values())
    policy = CompactionPolicy(min_files=2, target_bytes=largest * 20)
    monkeypatch.setattr(rewrite, "_FEWEST_CHUNK_ROWS", 7)
    reader = LakeReader(catalog)
    pinned = reader.current(TRADES)
    ((_, group),) = [(len(g.files), g) for g in compactor(catalog, policy=policy).due()[1]
                     if g.rows > 300]  # fmt: skip
    small = rewrite.Rewriter(TRADES, pinned.metadata, pinned.io, largest, chunk_bytes=1)
    written = small.rewrite(group, "cut")
    assert len(written) > 1
    assert sum(file.record_count for file in written) == group.rows
    compactor(catalog, policy=policy).run()
    assert rows_by_pyiceberg(catalog) == before


def test_unsorted_files_are_sorted(catalog, monkeypatch):
    """Another engine's, or of an older order."""
    partitions = files._partitions
    monkeypatch.setattr(
        files, "_partitions", lambda days, buckets, _: partitions(days, buckets, [])
    )
    end = fill(catalog, 6, rows=120)
    monkeypatch.undo()
    monkeypatch.setattr(rewrite, "_FEWEST_CHUNK_ROWS", 5)
    monkeypatch.setattr(rewrite, "CHUNK_BYTES", 1)
    before = rows_by_pyiceberg(catalog)
    assert compactor(catalog).run().commits == 1
    assert rows_by_pyiceberg(catalog) == before
    assert stored(catalog) == list(range(end))
    merged = [path for path in live_files(catalog) if "/c-" in path]
    assert len(merged) > 8
    for path in merged:
        rows = pq.read_table(path)
        assert rows.sort_by([(name, "ascending") for name in TRADES.sort_columns]) == rows


def test_delete_files_of_another_engine_are_refused(catalog, monkeypatch):
    fill(catalog, 8)
    monkeypatch.setattr(LakeReader, "has_deletes", lambda *_: True)
    with pytest.raises(LakeError, match="delete files"):
        compactor(catalog).run()


@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name)
def test_a_fault_of_the_catalog_costs_nothing(catalog, fault):
    end = fill(catalog, 8)
    faulty = FaultyCatalog(catalog, [fault])
    compactor(faulty).run()
    assert stored(catalog) == list(range(end))
    assert set(live_files(catalog)) <= on_disk(catalog)
    metadata, snapshot = head(catalog)
    assert vector_at(metadata, snapshot) == Vector({place(): upto(end)})
    assert snapshot.summary.operation == Operation.REPLACE


class Killed(BaseException):
    """The process ends here."""


def test_a_kill_at_any_write_leaves_a_correct_table(catalog):
    """Every file the compaction opens for writing, and the commit, is a point to die at."""
    symbols = ("BTCUSDT", "ETHUSDT")
    end, point, finished = fill(catalog, 5, symbols=symbols), 0, False
    while not finished:
        point += 1
        finished = compact_until(catalog, point)
        assert stored(catalog) == list(range(end))
        assert set(live_files(catalog)) <= on_disk(catalog)
        end = fill(catalog, 4, start=end, symbols=symbols)
    assert point > 6
    compactor(catalog).run()
    assert stored(catalog) == list(range(end))
    metadata, snapshot = head(catalog)
    assert vector_at(metadata, snapshot) == Vector({place(): upto(end)})


def compact_until(catalog, point) -> bool:
    """Compact and die at the `point`-th write; True when there are fewer."""
    count = 0

    def step():
        nonlocal count
        count += 1
        if count == point:
            raise Killed

    create, faulty = PyArrowFile.create, FaultyCatalog(catalog)
    commit = faulty.commit_table

    def killed_after(*request):
        response = commit(*request)
        step()
        return response

    faulty.commit_table = killed_after
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            PyArrowFile,
            "create",
            lambda self, overwrite=False: (step(), create(self, overwrite))[1],
        )
        # A killed process cleans nothing up.
        patch.setattr("k2.maintenance.compact.delete_files", lambda *_: [])
        patch.setattr("k2.maintenance.rewrite.delete_files", lambda *_: [])
        try:
            compactor(faulty).run()
        except Killed:
            return False
    return True


def test_a_rolled_back_input_is_refused_and_nothing_is_left(catalog, monkeypatch):
    """What was to be compacted went away meanwhile."""
    fill(catalog, 8)
    before = on_disk(catalog)
    ours = compactor(catalog)
    pinned, groups = ours.due()
    catalog.load_table(TRADES.identifier).delete()
    report_of = ours.run
    monkeypatch.setattr(ours, "due", lambda: (pinned, groups))
    report = report_of()
    assert (report.commits, report.superseded) == (0, 1)
    assert stored(catalog) == []
    assert on_disk(catalog) == before
    assert not on_disk(catalog, "k2-removed-*.json")


def test_appends_and_compactions_meet_without_loss_or_starvation(catalog):
    writer = LakeWriter(catalog, TRADES, retry_s=60.0)
    stop = threading.Event()
    errors, commits = [], []

    def compact():
        ours = Compactor(catalog, TRADES, policy=POLICY, retry_s=60.0)
        while not stop.is_set():
            try:
                commits.append(ours.run().commits)
            except Exception as exc:  # noqa: BLE001
                errors.append(exc)

    thread = threading.Thread(target=compact)
    thread.start()
    end = fill(catalog, 30, rows=24, writer=writer)
    # However seldom a busy machine lets it run, it gets its turn.
    while sum(commits) < 2 and not errors and end < 300 * 24:
        end = fill(catalog, 5, rows=24, start=end, writer=writer)
    stop.set()
    thread.join()
    assert not errors
    assert sum(commits) >= 2
    assert stored(catalog) == list(range(end))
    metadata, snapshot = head(catalog)
    assert vector_at(metadata, snapshot) == Vector({place(): upto(end)})


def test_older_snapshots_stay_readable(catalog):
    end = fill(catalog, 8)
    old = head(catalog)[1].snapshot_id
    compactor(catalog).run()
    assert stored(catalog, old) == list(range(end))
