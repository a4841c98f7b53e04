import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2.lake.reader import LakeFile
from k2.maintenance.merge import UnsortedRunError, merge_sorted, sort_rows
from k2.maintenance.plan import CompactionPolicy, plan

KEYS = ("symbol", "time", "sequence")


def table(rows):
    symbols, times, sequences = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table(
        {
            "symbol": pa.array(symbols, pa.string()),
            "time": pa.array(times, pa.timestamp("us", tz="UTC")),
            "sequence": pa.array(sequences, pa.int64()),
        }
    )


def rows_of(found):
    columns = [found["symbol"], found["time"].cast(pa.int64()), found["sequence"]]
    return list(zip(*(column.to_pylist() for column in columns), strict=True))


ROWS = st.tuples(
    st.sampled_from(["A", "B", "Z", "a", "É", "\U0001f600", "￿"]),
    st.integers(0, 5),
    st.integers(0, 9),
)


@given(runs=st.lists(st.lists(ROWS, max_size=30), max_size=6), chunk=st.integers(1, 7))
def test_a_merge_is_the_sort_of_everything(runs, chunk):
    def chunks(run):
        ordered = sort_rows(table(run), KEYS)
        for start in range(0, len(run), chunk):
            yield ordered.slice(start, chunk)

    merged = [row for part in merge_sorted([chunks(run) for run in runs], KEYS)
              for row in rows_of(part)]  # fmt: skip
    everything = [row for run in runs for row in run]
    assert merged == sorted(everything, key=lambda row: (row[0].encode(), *row[1:]))


@pytest.mark.parametrize("cut", [1, 3])
def test_an_unsorted_run_is_told(cut):
    rows = table([("A", 1, 1), ("B", 1, 1), ("A", 2, 2)])
    run = [rows.slice(0, cut), rows.slice(cut)]
    with pytest.raises(UnsortedRunError) as caught:
        list(merge_sorted([[table([("A", 1, 1)])], run], KEYS))
    assert caught.value.index == 1


def lake_file(name, size, day=10, bucket=3):
    return LakeFile(
        path=name, day=day, bucket=bucket, rows=size, bytes=size, symbols=None, times_us=None,
        sequences=None, epochs=None, topics=None, exchanges=None,
    )  # fmt: skip


POLICY = CompactionPolicy(target_bytes=10_000, min_files=12)


def test_few_files_of_an_open_day_wait():
    files = [lake_file(f"f{i}", 10) for i in range(11)]
    assert plan(files, POLICY, open_day=10) == []
    (group,) = plan([*files, lake_file("g", 10)], POLICY, open_day=10)
    assert len(group.files) == 12
    assert (group.day, group.bucket, group.bytes) == (10, 3, 120)


def test_a_large_file_waits_until_the_small_ones_add_up_to_it():
    small = [lake_file(f"f{i}", 10) for i in range(12)]
    (group,) = plan([*small, lake_file("large", 121)], POLICY, open_day=10)
    assert len(group.files) == 12
    (group,) = plan([*small, lake_file("large", 120)], POLICY, open_day=10)
    assert len(group.files) == 13


def test_a_closed_day_is_finished():
    files = [lake_file("a", 500), lake_file("b", 100), lake_file("c", 10_000)]
    (group,) = plan(files, POLICY, open_day=11)
    assert {file.path for file in group.files} == {"a", "b"}


def test_files_of_another_partitioning_are_left_alone():
    assert plan([lake_file(f"f{i}", 1, None, None) for i in range(50)], POLICY) == []


@given(sizes=st.lists(st.integers(1, 12_000), max_size=120), closed=st.booleans())
def test_a_plan_never_repeats_a_file_and_respects_the_target(sizes, closed):
    files = [lake_file(f"f{i}", size) for i, size in enumerate(sizes)]
    groups = plan(files, POLICY, open_day=11 if closed else 10)
    chosen = [file.path for group in groups for file in group.files]
    assert len(chosen) == len(set(chosen))
    for group in groups:
        assert len(group.files) > 1
        assert group.bytes <= POLICY.target_bytes
        assert len(group.files) <= POLICY.max_files
        assert all(file.bytes < POLICY.finished_bytes for file in group.files)


def test_a_day_of_commits_stays_at_few_files_and_few_rewrites():
    live, rewritten, most = {}, 0, 0
    policy = CompactionPolicy()
    for number in range(17_280):
        live[f"f{number}"] = lake_file(f"f{number}", 8_000)
        if number % 6 == 5:  # every 30 s
            for group in plan(live.values(), policy, open_day=10):
                for file in group.files:
                    del live[file.path]
                rewritten += group.bytes
                live[f"g{number}"] = lake_file(f"g{number}", group.bytes)
        most = max(most, len(live))
    assert most <= 30
    assert rewritten / (17_280 * 8_000) < 8
