import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyiceberg.table.metadata import new_table_metadata
from pyiceberg.table.refs import SnapshotRef, SnapshotRefType
from pyiceberg.table.snapshots import Operation, Snapshot, Summary

from k2.lake.history import Retention, ancestors, find_commit, vector_at
from k2.lake.tables import TRADES
from k2.lake.vector import COMMIT_ID_KEY, SUMMARY_KEY, Vector
from tests.lake.rows import place, upto

HOUR_MS = 3_600_000
NOW_MS = 2_000 * HOUR_MS


def snapshot(number, at_ms=0, carries=True, parent=True):
    ours = {SUMMARY_KEY: Vector({place(): upto(number)}).to_summary(), COMMIT_ID_KEY: f"c{number}"}
    return Snapshot(
        snapshot_id=number,
        parent_snapshot_id=number - 1 if parent else None,
        sequence_number=number,
        timestamp_ms=at_ms,
        manifest_list=f"list-{number}",
        summary=Summary(Operation.APPEND, **(ours if carries else {})),
        schema_id=0,
    )


def table(snapshots, tags=()):
    metadata = new_table_metadata(
        TRADES.schema, TRADES.partition_spec, TRADES.sort_order, "file:///nowhere", {}
    )
    refs = {
        f"tag-{tag}": SnapshotRef(snapshot_id=tag, snapshot_ref_type=SnapshotRefType.TAG)
        for tag in tags
    }
    if snapshots:
        head = snapshots[-1].snapshot_id
        refs["main"] = SnapshotRef(snapshot_id=head, snapshot_ref_type=SnapshotRefType.BRANCH)
    return metadata.model_copy(update={"snapshots": list(snapshots), "refs": refs})


def test_no_snapshot_no_vector():
    assert vector_at(table([]), None) == Vector.empty()


@pytest.mark.parametrize("cut", [True, False])
def test_the_walk_crosses_expired_snapshots(cut):
    """PyIceberg cuts the parent of what followed an expired snapshot, Java leaves it dangling."""
    chain = [snapshot(1), snapshot(5, parent=not cut), snapshot(9, carries=False, parent=not cut)]
    metadata = table(chain)
    assert [one.snapshot_id for one in ancestors(metadata, chain[-1])] == [9, 5, 1]
    assert vector_at(metadata, chain[-1]) == Vector({place(): upto(5)})


def test_rolled_back_snapshots_are_no_ancestors_but_did_land():
    chain = [snapshot(1), snapshot(2), snapshot(3)]
    metadata = table(chain)
    assert vector_at(metadata, chain[1]) == Vector({place(): upto(2)})
    assert find_commit(metadata, "c3") == chain[2]
    assert find_commit(metadata, "c4") is None


def test_retention_thins_by_age():
    chain = [snapshot(i + 1, NOW_MS - (2_000 - i) * 10 * 60_000) for i in range(2_000)]
    expired = Retention(all_count=5, days=90, batch=10_000).expired(table(chain), NOW_MS)
    gone = {one.snapshot_id for one in expired}
    ages_h = sorted(
        (NOW_MS - one.timestamp_ms) / HOUR_MS for one in chain if one.snapshot_id not in gone
    )
    assert len([age for age in ages_h if age <= 1]) == 6
    assert 46 <= len([age for age in ages_h if 1 < age <= 48]) <= 48
    assert 12 <= len([age for age in ages_h if age > 48]) <= 13


def test_retention_keeps_tags_and_works_in_batches():
    chain = [snapshot(i + 1, i) for i in range(300)]
    retention = Retention(all_count=100, batch=50)
    expired = retention.expired(table(chain, tags=(7,)), 400 * 24 * HOUR_MS)
    assert [one.snapshot_id for one in expired] == [i for i in range(1, 52) if i != 7]


@given(
    carries=st.lists(st.booleans(), min_size=1, max_size=60),
    step_ms=st.sampled_from([1_000, 60_000, HOUR_MS, 24 * HOUR_MS]),
    count=st.integers(1, 5),
)
def test_expiry_never_changes_a_kept_vector(carries, step_ms, count):
    chain = [snapshot(i + 1, i * step_ms, flag) for i, flag in enumerate(carries)]
    before = table(chain)
    retention = Retention(all_ms=0, all_count=count, batch=1_000)
    gone = {one.snapshot_id for one in retention.expired(before, len(chain) * step_ms)}
    assert chain[-1].snapshot_id not in gone
    left = [one for one in chain if one.snapshot_id not in gone]
    for one in left:
        assert vector_at(table(left), one) == vector_at(before, one)
