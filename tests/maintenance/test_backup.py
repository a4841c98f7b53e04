import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from k2.cli.main import cli
from k2.errors import LakeError
from k2.lake.catalog import file_properties, open_catalog, warehouse
from k2.lake.history import vector_at
from k2.lake.tables import TABLES, TRADES
from k2.lake.vector import Vector
from k2.maintenance.backup import Backup, BackupStore
from k2.maintenance.compact import Compactor
from k2.maintenance.correct import Correction, Corrector
from k2.maintenance.keeper import Keeper
from k2.maintenance.plan import CompactionPolicy
from k2.maintenance.restore import Restore
from tests.lake.conftest import settings_in
from tests.lake.rows import place, upto
from tests.maintenance.lakes import fill, rows_by_duckdb, rows_by_pyiceberg, stored


@pytest.fixture
def store(tmp_path):
    return BackupStore((tmp_path / "away").as_uri(), {})


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty lake at another place."""
    settings = settings_in(tmp_path / "other", monkeypatch)
    opened = open_catalog(settings)
    base = warehouse(settings)
    yield opened, base, file_properties(settings, base)
    opened.close()


def back_up(catalog, store):
    return Backup(catalog, store).run(TRADES)


def restore(elsewhere, store, name=None):
    catalog, base, properties = elsewhere
    return Restore(catalog, store, base, properties).run(TRADES, name)


def busy_lake(catalog):
    """Appends, a tag, a merge, a correction, another append; returns the next id."""
    end = fill(catalog, 4)
    Keeper(catalog, TRADES).tag("before")
    Compactor(catalog, TRADES, policy=CompactionPolicy(min_files=2)).run()
    gone = rows_by_pyiceberg(catalog)[5]["message_id"]
    Corrector(catalog, wait=lambda _: None).run([Correction(gone)], "bust")
    return fill(catalog, 1, start=end)


def test_a_lake_comes_back_elsewhere_with_its_history(catalog, store, elsewhere, tmp_path):
    end = busy_lake(catalog)
    rows = rows_by_pyiceberg(catalog)
    tagged = catalog.load_table(TRADES.identifier).metadata.refs["before"].snapshot_id
    before = rows_by_pyiceberg(catalog, tagged)
    done = back_up(catalog, store)
    assert (done.rows, done.copied_files) == (end - 1, done.files)
    # Nothing of the old place may be needed.
    shutil.rmtree(tmp_path / "data")
    other = elsewhere[0]
    restored = restore(elsewhere, store)
    assert restored.rows == end - 1
    assert rows_by_pyiceberg(other) == rows
    assert rows_by_pyiceberg(other, tagged) == before
    assert [row[0] for row in rows_by_duckdb(other)] == [row["platform_sequence"] for row in rows]
    metadata = other.load_table(TRADES.identifier).metadata
    assert vector_at(metadata, metadata.current_snapshot()) == Vector({place(): upto(end)})
    # It lives on: the sink, a merge, a rollback, and cleaning.
    end = fill(other, 3, start=end)
    Compactor(other, TRADES, policy=CompactionPolicy(min_files=2)).run()
    keeper = Keeper(other, TRADES)
    assert keeper.cleaner.orphans(dry_run=True).files == 0
    assert len(stored(other)) == end - 1
    keeper.rollback("before")
    assert rows_by_pyiceberg(other) == before


def test_a_second_backup_copies_only_what_is_new(catalog, store):
    end = fill(catalog, 3)
    first = back_up(catalog, store)
    again = back_up(catalog, store)
    assert (again.copied_files, again.files) == (0, first.files)
    fill(catalog, 1, start=end)
    third = back_up(catalog, store)
    assert 0 < third.copied_files < third.files / 2
    assert third.rows == first.rows + 48


def test_an_older_backup_can_be_chosen_and_old_ones_go(catalog, store, elsewhere):
    end = fill(catalog, 2)
    first = back_up(catalog, store)
    Compactor(catalog, TRADES, policy=CompactionPolicy(min_files=2)).run()
    fill(catalog, 2, start=end)
    second = back_up(catalog, store)
    restore(elsewhere, store, first.name)
    assert stored(elsewhere[0]) == list(range(end))
    elsewhere[0].drop_table(TRADES.identifier)
    files = len(store.held(TRADES))
    gone = store.prune(TRADES, 1)
    assert store.names(TRADES) == [second.name]
    assert len(store.held(TRADES)) == files - gone
    restore(elsewhere, store)
    assert len(stored(elsewhere[0])) == 2 * end


def test_half_a_file_of_a_backup_that_was_cut_off_is_copied_again(
    catalog, store, elsewhere, monkeypatch
):
    end = fill(catalog, 2)

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(BackupStore, "write", crash)
        with pytest.raises(KeyboardInterrupt):
            back_up(catalog, store)
    assert store.names(TRADES) == []
    for path in store.held(TRADES):
        os.truncate(store.file(TRADES, path).removeprefix("file://"), 10)
    back_up(catalog, store)
    restore(elsewhere, store)
    assert stored(elsewhere[0]) == list(range(end))


def test_a_lost_catalog_is_restored_in_place(catalog, store, lake_settings):
    """The files are all there: only what is missing is copied."""
    end = fill(catalog, 3)
    back_up(catalog, store)
    (victim,) = list(Path(lake_settings.core.data_dir).rglob("*.parquet"))[:1]
    victim.unlink()
    location = catalog.load_table(TRADES.identifier).location()
    catalog.drop_table(TRADES.identifier)
    base = warehouse(lake_settings)
    assert location == f"{base}/market_data/trades"
    done = Restore(catalog, store, base, {}).run(TRADES)
    assert done.copied_files == 1
    assert stored(catalog) == list(range(end))


def test_what_would_be_overwritten_is_refused(catalog, store, lake_settings):
    fill(catalog, 1)
    back_up(catalog, store)
    with pytest.raises(LakeError, match="in the catalog already"):
        Restore(catalog, store, warehouse(lake_settings), {}).run(TRADES)


def test_a_damaged_backup_is_told(catalog, store, elsewhere):
    fill(catalog, 1)
    back_up(catalog, store)
    data = next(path for path in store.held(TRADES) if path.endswith(".parquet"))
    os.truncate(store.file(TRADES, data).removeprefix("file://"), 10)
    with pytest.raises(LakeError, match="the backup is damaged"):
        restore(elsewhere, store)


def test_no_backup_is_told(elsewhere, store):
    with pytest.raises(LakeError, match="no backup at all"):
        restore(elsewhere, store)


def test_by_hand(catalog, tmp_path, monkeypatch):
    end = fill(catalog, 2)
    place_ = str(tmp_path / "away")
    done = run("backup", "--to", place_, "--json")
    assert done["trades"]["rows"] == end
    assert set(done) == set(TABLES)
    settings_in(tmp_path / "new", monkeypatch)
    names = run("restore", "--from", place_, "--list", "--json")
    assert names["trades"]["backups"] == [done["trades"]["name"]]
    restored = run("restore", "trades", "--from", place_, "--json")
    assert restored["trades"]["rows"] == end


def run(*words):
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)
