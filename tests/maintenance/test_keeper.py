import json
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from k2.cli.main import cli
from k2.errors import LakeError
from k2.lake.history import Retention, vector_at
from k2.lake.tables import TABLES, TRADES
from k2.lake.vector import Vector
from k2.lake.writer import LakeWriter
from k2.maintenance.keeper import Keeper, KeeperOptions
from k2.maintenance.plan import CompactionPolicy
from k2.maintenance.refs import due_tags
from tests.lake.rows import place, upto
from tests.lake.test_history import HOUR_MS, snapshot, table
from tests.maintenance.lakes import fill, live_files, on_disk, stored

HOUR_S = 3_600


class Clock:
    def __init__(self, at_s=1_800_000_000.0):
        self.s = at_s

    def now_us(self):
        return int(self.s * 1e6)

    def monotonic_s(self):
        return self.s


def keeper(catalog, clock=None, **options):
    options = KeeperOptions(policy=CompactionPolicy(min_files=4), **options)
    return Keeper(catalog, TRADES, options, clock=clock or Clock(), wait=lambda _: None)


def age(catalog, hours):
    """Make every file of the table look written `hours` ago."""
    location = catalog.load_table(TRADES.identifier).location().removeprefix("file://")
    written_s = time.time() - hours * HOUR_S
    for path in Path(location).rglob("*"):
        os.utime(path, (written_s, written_s))


def head(catalog):
    return catalog.load_table(TRADES.identifier).current_snapshot()


def test_a_rollback_keeps_the_position_and_the_sink_goes_on(catalog):
    end = fill(catalog, 2)
    target = head(catalog).snapshot_id
    later = fill(catalog, 3, start=end)
    keeper(catalog).rollback(str(target))
    assert stored(catalog) == list(range(end))
    metadata = catalog.load_table(TRADES.identifier).metadata
    assert vector_at(metadata, head(catalog)) == Vector({place(): upto(later)})
    assert head(catalog).summary["total-records"] == str(end)
    last = fill(catalog, 1, start=later)
    assert stored(catalog) == [*range(end), *range(later, last)]


@pytest.mark.parametrize("text", ["12345", "no-such-tag", "1999-01-01"])
def test_a_rollback_to_nowhere_is_refused(catalog, text):
    fill(catalog, 2)
    with pytest.raises(LakeError, match="no snapshot"):
        keeper(catalog).rollback(text)


def test_a_rollback_by_tag_after_compaction(catalog):
    end = fill(catalog, 5)
    ours = keeper(catalog)
    ours.tag("before-compaction")
    ours.compact()
    fill(catalog, 2, start=end)
    ours.rollback("before-compaction")
    assert stored(catalog) == list(range(end))


def test_tags_of_hours_and_days():
    now_ms = 2_000 * HOUR_MS + HOUR_MS // 2
    chain = [snapshot(i + 1, i * HOUR_MS // 2) for i in range(4_002)]
    metadata = table(chain).model_copy(update={"current_snapshot_id": 4_002})
    changes = {one.ref_name: one for one in due_tags(metadata, now_ms)}
    hourly = [one for name, one in changes.items() if name.startswith("hourly-")]
    daily = [one for name, one in changes.items() if name.startswith("daily-")]
    assert (len(hourly), len(daily)) == (47, 83)
    by_id = {one.snapshot_id: one for one in chain}
    last = by_id[changes["hourly-1970-03-25T07"].snapshot_id]
    assert last.timestamp_ms == 1_999 * HOUR_MS + HOUR_MS // 2
    # The day and the hour at hand are not over.
    assert "hourly-1970-03-25T08" not in changes
    assert "daily-1970-03-25" not in changes
    assert hourly[0].max_ref_age_ms == 48 * HOUR_MS


def test_outlived_tags_are_removed_once_and_kept_snapshots_expire(catalog):
    clock = Clock()
    ours = keeper(catalog, clock, retention=Retention(all_ms=0, all_count=1, days=2))
    writer = LakeWriter(catalog, TRADES, clock=clock, retention=Retention(days=99))
    fill(catalog, 2, writer=writer)
    clock.s += 25 * HOUR_S
    ours.tag_history()
    tags = ours.status().tags
    assert [name.split("-")[0] for name in tags] == ["daily", "hourly"]
    assert ours.tag_history() == []
    clock.s += 80 * HOUR_S
    fill(catalog, 1, start=96, writer=writer)
    ours.tag_history()
    assert ours.status().tags == []
    assert len(ours.expire()) == 2
    assert stored(catalog) == list(range(144))


def test_reserved_and_taken_names_are_refused(catalog):
    fill(catalog, 2)
    ours = keeper(catalog)
    ours.tag("release")
    for name in ("release", "main", "k2-vector", "daily-2024-01-01", "a b", ""):
        with pytest.raises(LakeError):
            ours.tag(name)
    for name in ("k2-vector", "main", "other"):
        with pytest.raises(LakeError):
            ours.untag(name)
    ours.untag("release")
    assert ours.status().tags == []


def test_orphans_are_old_unreferenced_files_only(catalog):
    end = fill(catalog, 5)
    clock = Clock(time.time())
    ours = keeper(catalog, clock, retention=Retention(all_ms=0, all_count=1, days=0))
    ours.tag("kept")
    ours.compact()
    stray = Path(next(iter(live_files(catalog)))).with_name("stray.parquet")
    stray.write_bytes(b"left by a crash")
    assert ours.cleaner.orphans().files == 0  # too young
    age(catalog, 100)
    found = ours.cleaner.orphans(dry_run=True).sample
    assert [path for path in found if path.endswith(".parquet")] == [f"file://{stray}"]
    assert stray.exists()
    before = on_disk(catalog)
    ours.cleaner.orphans()
    assert on_disk(catalog) == before - {str(stray)}
    ours.untag("kept")
    clock.s += 80 * HOUR_S
    ours.expire()
    assert ours.cleaner.orphans().files > 0
    assert on_disk(catalog) == set(live_files(catalog))
    assert stored(catalog) == list(range(end))


def test_nothing_is_deleted_while_metadata_cannot_be_read(catalog):
    fill(catalog, 3)
    ours = keeper(catalog)
    stray = Path(next(iter(live_files(catalog)))).with_name("stray.parquet")
    stray.write_bytes(b"x")
    age(catalog, 100)
    hidden = Path(min(on_disk(catalog, "k2-*.avro")))
    hidden.rename(hidden.with_suffix(".hidden"))
    with pytest.raises(LakeError, match="none is deleted"):
        ours.cleaner.orphans()
    assert stray.exists()


def test_a_minimum_age_protects_commits_on_their_way(catalog):
    with pytest.raises(LakeError, match="allowed: 1 h"):
        keeper(catalog).cleaner.orphans(older_than_s=60)


def test_the_sweep_takes_what_compactions_replaced(catalog):
    end = fill(catalog, 6)
    replaced = on_disk(catalog)
    clock = Clock(time.time())
    ours = keeper(catalog, clock, retention=Retention(all_ms=0, all_count=1, days=0))
    ours.compact()
    assert ours.cleaner.sweep().files == 0  # within the grace
    clock.s += 80 * HOUR_S
    ours.expire()
    assert ours.cleaner.sweep().files >= len(replaced - set(live_files(catalog)))
    assert on_disk(catalog) == set(live_files(catalog))
    assert not on_disk(catalog, "k2-removed-*")
    assert stored(catalog) == list(range(end))


def test_what_was_replaced_outlives_every_reader_and_commit():
    assert KeeperOptions().grace_s == HOUR_S
    assert KeeperOptions(retry_s=2_000).grace_s == 8_000
    assert KeeperOptions(readers_s=3 * HOUR_S).grace_s == 6 * HOUR_S


def test_rows_of_old_days_go_by_retention(catalog):
    end = fill(catalog, 4)
    clock = Clock()
    clock.s = 1_723_161_600 + 10 * 86_400  # ten days after the second day began
    assert keeper(catalog, clock, rows_days=11).drop_old_rows() == 0
    assert keeper(catalog, clock, rows_days=10).drop_old_rows(dry_run=True) > 0
    assert stored(catalog) == list(range(end))
    keeper(catalog, clock, rows_days=10).drop_old_rows()
    assert stored(catalog) == list(range(100, end))
    metadata = catalog.load_table(TRADES.identifier).metadata
    assert vector_at(metadata, head(catalog)) == Vector({place(): upto(end)})
    assert fill(catalog, 1, start=end) == end + 48


def run(*words):
    result = CliRunner().invoke(cli, ["lake", *words])
    return result.exit_code, result.output


def test_the_commands(catalog):
    end = fill(catalog, 14)
    code, out = run("status", "trades", "--json")
    assert code == 0
    before = json.loads(out)["trades"]
    assert (before["rows"], before["snapshots"]) == (end, 14)
    assert before["due_files"] > 0
    code, out = run("compact", "trades", "--dry-run", "--json")
    assert json.loads(out)["trades"]["files_before"] == before["due_files"]
    assert run("tag", "trades", "v1")[0] == 0
    assert run("compact", "--json")[0] == 0
    code, out = run("status", "--json")
    after = json.loads(out)
    assert set(after) == set(TABLES)
    assert after["trades"]["files"] < before["files"] / 4
    assert after["trades"]["tags"] == ["v1"]
    code, out = run("rewrite-manifests", "trades", "--json")
    assert json.loads(out)["trades"]["manifests"] == 1
    code, out = run("rollback", "trades", "v1", "--dry-run", "--json")
    assert json.loads(out)["trades"]["rows_then"] == end
    assert run("rollback", "trades", "v1")[0] == 0
    assert run("expire", "--json")[0] == 0
    assert run("orphans", "--dry-run")[0] == 0
    assert run("orphans", "trades", "--older-than-hours", "0")[0] == 1
    code, out = run("tag", "trades", "main")
    assert code == 1
    assert "K2's own" in out
    assert stored(catalog) == list(range(end))
