import threading
from fnmatch import fnmatch
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow.fs import FileSelector
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from k2.errors import CommitConflictError, LakeError, StaleWriterError
from k2.lake.history import Retention, vector_at
from k2.lake.snapshot import VECTOR_TAG
from k2.lake.tables import TRADES, ensure_tables
from k2.lake.vector import COMMIT_ID_KEY, SUMMARY_KEY, Vector
from k2.lake.writer import LakeWriter
from k2.testing.catalog import Fault, FaultyCatalog
from tests.lake.rows import place, trades, upto


class Clock:
    """Wall and monotonic time that only move when told (or waited for)."""

    def __init__(self):
        self.s = 1_000.0
        self.lock = threading.Lock()

    def now_us(self):
        return int(self.s * 1e6) + 1_723_161_500_000_000

    def monotonic_s(self):
        return self.s

    def wait(self, seconds):
        with self.lock:
            self.s += seconds


@pytest.fixture
def clock():
    return Clock()


def writer_on(catalog, clock, **options):
    options = {"retry_s": 30.0, **options}
    return LakeWriter(catalog, TRADES, clock=clock, wait=clock.wait, **options)


def stored(catalog, snapshot_id=None) -> list[int]:
    scan = catalog.load_table(TRADES.identifier).scan(snapshot_id=snapshot_id)
    return sorted(scan.to_arrow()["platform_sequence"].to_pylist())


def data_files(catalog) -> set[str]:
    tasks = catalog.load_table(TRADES.identifier).scan().plan_files()
    return {task.file.file_path.removeprefix("file://") for task in tasks}


def files_on_disk(catalog, pattern="*.parquet") -> set[str]:
    table = catalog.load_table(TRADES.identifier)
    scheme, _, location = table.location().partition("://")
    if scheme == "file":
        return {str(path) for path in Path(location).rglob(pattern)}
    store = table.io.fs_by_scheme(scheme, location.partition("/")[0])
    found = store.get_file_info(FileSelector(location, recursive=True, allow_not_found=True))
    return {f"{scheme}://{one.path}" for one in found if fnmatch(one.base_name, pattern)}


def test_rows_and_vector_land_together(catalog, clock):
    result = writer_on(catalog, clock).commit(
        trades(range(10)), {place(): None}, {place(): upto(10)}
    )
    assert (result.rows, result.attempts) == (10, 1)
    assert result.vector == Vector({place(): upto(10)})
    assert stored(catalog) == list(range(10))
    table = catalog.load_table(TRADES.identifier)
    assert table.current_snapshot().summary["total-records"] == "10"
    assert table.metadata.refs[VECTOR_TAG].snapshot_id == result.snapshot_id
    assert result.metadata_location == table.metadata_location


def test_the_vector_keeps_other_places(catalog, clock):
    writer = writer_on(catalog, clock)
    writer.commit(trades(range(3)), {place(0): None}, {place(0): upto(3)})
    writer.commit(trades(range(3, 5)), {place(1): None}, {place(1): upto(5)})
    assert writer.vector() == Vector({place(0): upto(3), place(1): upto(5)})


def test_a_commit_without_rows_moves_only_the_vector(catalog, clock):
    writer = writer_on(catalog, clock)
    result = writer.commit(None, {place(): None}, {place(): upto(7)})
    assert (result.files, result.rows) == (0, 0)
    result = writer.commit(trades(range(7, 9)), {place(): upto(7)}, {place(): upto(9)})
    assert stored(catalog) == [7, 8]
    assert writer.vector() == Vector({place(): upto(9)})


def test_a_zombie_is_refused_and_leaves_no_file(catalog, clock):
    zombie, owner = writer_on(catalog, clock), writer_on(catalog, clock)
    owner.commit(trades(range(5)), {place(): None}, {place(): upto(5)})
    with pytest.raises(StaleWriterError, match="another worker") as caught:
        zombie.commit(trades(range(4)), {place(): None}, {place(): upto(4)})
    assert caught.value.details["found"] == upto(5)
    assert caught.value.details["outcome"] == "absent"
    assert stored(catalog) == list(range(5))
    assert files_on_disk(catalog) == data_files(catalog)


def test_a_zombie_that_loses_the_race_is_refused(catalog, clock):
    owner = writer_on(catalog, clock)
    faulty = FaultyCatalog(catalog)

    def race(*request):
        faulty.commit_table = type(faulty).commit_table.__get__(faulty)
        owner.commit(trades(range(5)), {place(): None}, {place(): upto(5)})
        return faulty.commit_table(*request)

    faulty.commit_table = race
    with pytest.raises(StaleWriterError):
        writer_on(faulty, clock).commit(trades(range(4)), {place(): None}, {place(): upto(4)})
    assert stored(catalog) == list(range(5))
    assert files_on_disk(catalog) == data_files(catalog)


@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name)
def test_a_fault_neither_loses_nor_repeats_rows(catalog, clock, fault):
    faulty = FaultyCatalog(catalog, [fault])
    writer = writer_on(faulty, clock)
    writer.commit(trades(range(5)), {place(): None}, {place(): upto(5)})
    writer.commit(trades(range(5, 9)), {place(): upto(5)}, {place(): upto(9)})
    assert stored(catalog) == list(range(9))
    assert files_on_disk(catalog) == data_files(catalog)
    snapshots = catalog.load_table(TRADES.identifier).metadata.snapshots
    assert len(snapshots) == 2
    lists = {snapshot.manifest_list.removeprefix("file://") for snapshot in snapshots}
    assert files_on_disk(catalog, "snap-*.avro") == lists


def test_a_lost_reply_is_found_without_a_second_commit(catalog, clock):
    faulty = FaultyCatalog(catalog, [Fault.LOST_REPLY])
    result = writer_on(faulty, clock).commit(trades(range(5)), {place(): None}, {place(): upto(5)})
    assert faulty.commits == 1
    assert (
        result.snapshot_id == catalog.load_table(TRADES.identifier).current_snapshot().snapshot_id
    )
    assert result.vector == Vector({place(): upto(5)})


def test_an_outage_is_waited_for(catalog, clock):
    faulty = FaultyCatalog(catalog)
    faulty.load_failures = 5
    writer_on(faulty, clock).commit(trades(range(5)), {place(): None}, {place(): upto(5)})
    assert stored(catalog) == list(range(5))


def test_lines_of_a_commit_are_found_by_its_id(catalog, clock):
    faulty = FaultyCatalog(catalog)
    faulty.load_failures = 2
    with capture_logs(processors=[merge_contextvars]) as said:
        made = writer_on(faulty, clock).commit(
            trades(range(5)), {place(): None}, {place(): upto(5)}
        )
    ids = {line.get("commit_id") for line in said if line["log_level"] == "warning"}
    snapshot = catalog.load_table(TRADES.identifier).snapshot_by_id(made.snapshot_id)
    assert ids == {snapshot.summary[COMMIT_ID_KEY]}


def test_conflicts_without_end_become_an_error_without_files(catalog, clock):
    faulty = FaultyCatalog(catalog, [Fault.CONFLICT] * 1_000)
    with pytest.raises(CommitConflictError, match="K2_ICEBERG_COMMIT_RETRY_S") as caught:
        writer_on(faulty, clock).commit(trades(range(5)), {place(): None}, {place(): upto(5)})
    assert caught.value.details["outcome"] == "absent"
    assert not files_on_disk(catalog)
    assert not files_on_disk(catalog, "*.avro")


def test_files_stay_while_an_unanswered_request_can_still_land(catalog, clock):
    faulty = FaultyCatalog(catalog, [Fault.LATE])
    faulty.late_loads = 3
    with pytest.raises(LakeError) as caught:
        writer_on(faulty, clock, retry_s=0.0).commit(
            trades(range(5)), {place(): None}, {place(): upto(5)}
        )
    assert caught.value.details["outcome"] == "unknown"
    assert stored(catalog) == []
    faulty.load_table(TRADES.identifier)
    assert stored(catalog) == list(range(5))


def test_an_empty_answer_before_the_catalog_is_an_error(catalog, clock):
    faulty = FaultyCatalog(catalog)
    faulty.load_failures = 1_000
    with pytest.raises(LakeError, match="did not answer") as caught:
        writer_on(faulty, clock).commit(trades(range(2)), {place(): None}, {place(): upto(2)})
    assert caught.value.details["outcome"] == "absent"
    assert not files_on_disk(catalog)


def test_the_vector_is_found_below_snapshots_of_other_engines(catalog, clock):
    writer = writer_on(catalog, clock)
    writer.commit(trades(range(5)), {place(): None}, {place(): upto(5)})
    foreign = catalog.load_table(TRADES.identifier)
    foreign.delete("symbol = 'BTCUSDT'")
    foreign = foreign.refresh()
    assert SUMMARY_KEY not in foreign.current_snapshot().summary.additional_properties
    assert writer.vector() == Vector({place(): upto(5)})
    writer.commit(trades(range(5, 8)), {place(): upto(5)}, {place(): upto(8)})
    assert stored(catalog) == [1, 2, 4, 5, 6, 7]


def test_writers_of_disjoint_places_all_land(catalog, clock):
    def run(partition):
        writer = writer_on(catalog, clock, retry_s=1e9)
        base = None
        for step in range(5):
            ids = range(partition * 1000 + step * 10, partition * 1000 + step * 10 + 10)
            position = upto(ids[-1] + 1)
            writer.commit(
                trades(ids, partition=partition),
                {place(partition): base},
                {place(partition): position},
            )
            base = position

    threads = [threading.Thread(target=run, args=(p,)) for p in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stored(catalog) == [p * 1000 + i for p in range(3) for i in range(50)]
    table = catalog.load_table(TRADES.identifier)
    assert vector_at(table.metadata, table.current_snapshot()) == Vector(
        {place(p): upto(p * 1000 + 50) for p in range(3)}
    )
    assert files_on_disk(catalog) == data_files(catalog)


def test_manifests_and_snapshots_stay_few(catalog, clock):
    retention = Retention(all_ms=5_000, all_count=10)
    writer = writer_on(catalog, clock, retention=retention)
    base = None
    for step in range(130):
        clock.wait(1.0)
        position = upto(step + 1)
        result = writer.commit(trades([step]), {place(): base}, {place(): position})
        base = position
    table = catalog.load_table(TRADES.identifier)
    assert stored(catalog) == list(range(130))
    assert len(table.current_snapshot().manifests(table.io)) < 30
    assert len(result.metadata.snapshots) <= 14
    lists = {one.manifest_list.removeprefix("file://") for one in table.metadata.snapshots}
    assert files_on_disk(catalog, "snap-*.avro") == lists
    assert len(files_on_disk(catalog, "*.metadata.json")) <= 21
    oldest = min(table.metadata.snapshots, key=lambda one: one.sequence_number)
    assert len(stored(catalog, oldest.snapshot_id)) == oldest.sequence_number
    assert len({one.summary[COMMIT_ID_KEY] for one in table.metadata.snapshots}) == len(lists)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    faults=st.lists(st.sampled_from(Fault), max_size=12),
    late_loads=st.integers(1, 4),
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    retry_s=st.sampled_from([0.0, 0.2, 30.0]),
)
def test_any_faults_give_exactly_the_rows_of_the_log(
    faults, late_loads, sizes, retry_s, lake_settings, tmp_path_factory
):
    """A sink that starts again from the vector after each error stores every row once."""
    from k2.lake.catalog import open_catalog

    core = lake_settings.core.model_copy(update={"data_dir": tmp_path_factory.mktemp("lake")})
    catalog = open_catalog(lake_settings.model_copy(update={"core": core}))
    ensure_tables(catalog, "zstd")
    clock = Clock()
    faulty = FaultyCatalog(catalog, faults)
    faulty.late_loads = late_loads
    writer = writer_on(faulty, clock, retry_s=retry_s)
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    try:
        base = writer.vector().get(place())
        turns = 0
        while base is None or base.next_offset < ends[-1] + 1:
            turns += 1
            assert turns < 50, "the sink starts again for ever"
            start = base.next_offset - 1 if base else 0
            end = next((end for end in ends if base is None or end > start), ends[-1])
            if base is not None and end <= start:
                break
            position = upto(end + 1)
            try:
                writer.commit(trades(range(start, end)), {place(): base}, {place(): position})
                base = position
            except LakeError:
                base = writer.vector().get(place())
        for _ in range(4):
            faulty.load_table(TRADES.identifier)
        assert stored(catalog) == list(range(ends[-1]))
        assert data_files(catalog) <= files_on_disk(catalog)
    finally:
        catalog.close()
