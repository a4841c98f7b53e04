import json
import os
import subprocess
import sys

import pytest

from k2.errors import ConfigError, LogCorruptError, LogError, LogLockedError
from k2.transport.local import shared
from tests.local_log.logs import append, crash, open_store, segments, values


def test_topics_survive_and_keep_their_epoch(tmp_path):
    with open_store(tmp_path) as store:
        made = store.create_topic("t", 3, {"retention.ms": "1000"})
        append(made.partitions[2], b"a")
        epoch = made.meta.epoch
    with open_store(tmp_path) as store:
        topic = store.topic("t")
        assert (topic.meta.epoch, topic.meta.partitions) == (epoch, 3)
        assert topic.config.retention_ms == 1_000
        assert values(store.partition("t", 2)) == [b"a"]


def test_a_topic_made_anew_has_another_epoch_and_nothing_else(tmp_path):
    with open_store(tmp_path) as store:
        old = store.create_topic("t", 1)
        append(old.partitions[0], b"a")
        store.commit("g", {("t", 0): 1})
        store.delete_topic("t")
        assert store.topics() == {}
        with pytest.raises(LogError, match="closed"):
            append(old.partitions[0], b"b")
        new = store.create_topic("t", 1)
        assert new.meta.epoch != old.meta.epoch
        assert values(new.partitions[0]) == []
        assert store.committed("g", "t", 0) is None


def test_another_partition_count_is_refused_and_nothing_is_repaired(tmp_path):
    with open_store(tmp_path) as store:
        store.create_topic("t", 2)
        assert store.create_topic("t", 2).meta.partitions == 2
        with pytest.raises(ConfigError, match="'t' has 2 partitions, not 4"):
            store.create_topic("t", 4)
        assert store.topic("t").meta.partitions == 2


@pytest.mark.parametrize("name", ["", "..", "a/b", "~new-x", "x" * 250])
def test_bad_topic_names_are_refused(tmp_path, name):
    with open_store(tmp_path) as store, pytest.raises(ConfigError, match="not allowed"):
        store.create_topic(name, 1)


def test_bad_topic_settings_are_refused(tmp_path):
    with open_store(tmp_path) as store:
        with pytest.raises(ConfigError, match=r"retention.ms='soon'; allowed: a whole number"):
            store.create_topic("t", 1, {"retention.ms": "soon"})
        with pytest.raises(ConfigError, match="0 partitions"):
            store.create_topic("t", 0)


def test_missing_topics_and_partitions_are_named(tmp_path):
    with open_store(tmp_path) as store:
        store.create_topic("t", 2)
        with pytest.raises(LogError, match="topic 'u' does not exist"):
            store.partition("u", 0)
        with pytest.raises(LogError, match="'t' has no partition 2; it has 2"):
            store.partition("t", 2)


def test_what_a_crash_left_half_made_or_half_deleted_goes(tmp_path):
    with open_store(tmp_path) as store:
        store.create_topic("t", 1)
    for name in ("~new-1", "~old-2"):
        (tmp_path / "topics" / name / "0").mkdir(parents=True)
    with open_store(tmp_path) as store:
        assert list(store.topics()) == ["t"]
        assert [path.name for path in (tmp_path / "topics").iterdir()] == ["t"]


def test_unreadable_metadata_is_named(tmp_path):
    with open_store(tmp_path) as store:
        store.create_topic("t", 1)
    path = tmp_path / "topics" / "t" / "topic.json"
    path.write_bytes(b"{")
    with pytest.raises(LogCorruptError, match=r"topic.json is not a topic's metadata"):
        open_store(tmp_path)
    path.unlink()
    with pytest.raises(LogCorruptError, match=r"topic.json is not a topic's metadata"):
        open_store(tmp_path)


def test_an_unreadable_clean_mark_only_costs_a_check(tmp_path):
    with open_store(tmp_path) as store:
        append(store.create_topic("t", 1).partitions[0], b"a")
    (tmp_path / "clean.json").write_bytes(b"{")
    with open_store(tmp_path) as store:
        assert values(store.partition("t", 0)) == [b"a"]


def test_committed_offsets_survive_without_a_clean_close(tmp_path):
    store = open_store(tmp_path)
    store.create_topic("t", 2)
    assert store.committed("a/group", "t", 0) is None
    store.commit("a/group", {("t", 0): 5})
    store.commit("a/group", {("t", 1): 7})
    store.commit("other", {("t", 0): 1})
    crash(store)
    with open_store(tmp_path) as store:
        assert store.committed("a/group", "t", 0) == 5
        assert store.committed("a/group", "t", 1) == 7
        assert store.committed("other", "t", 0) == 1
        assert store.committed("other", "t", 1) is None


def test_a_commit_that_cannot_be_written_leaves_the_ones_before(tmp_path):
    with open_store(tmp_path) as store:
        store.create_topic("t", 1)
        store.commit("g", {("t", 0): 5})
        (tmp_path / "groups" / "g.json.draft").mkdir()
        with pytest.raises(LogError, match="the ones committed before stand"):
            store.commit("g", {("t", 0): 6})
        assert store.committed("g", "t", 0) == 5
        assert "5" in (tmp_path / "groups" / "g.json").read_text()


def test_an_unreadable_offsets_file_is_named(tmp_path):
    with open_store(tmp_path):
        pass
    (tmp_path / "groups" / "g.json").write_bytes(b"[]")
    with pytest.raises(LogCorruptError, match=r"g.json is not a file of committed offsets"):
        open_store(tmp_path)


def test_a_second_process_is_told_who_holds_the_log(tmp_path):
    code = (
        "import sys; from pathlib import Path; from k2.transport.local.store import LogStore\n"
        "from k2.errors import LogLockedError\n"
        "try: LogStore(Path(sys.argv[1]))\n"
        "except LogLockedError as exc: print(exc.message)\n"
    )

    def second():
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
        )
        return done.stdout

    with open_store(tmp_path):
        said = second()
        assert f"in use by process {os.getpid()}" in said
        assert "K2_KAFKA_BOOTSTRAP_SERVERS" in said
        with pytest.raises(LogLockedError, match=str(os.getpid())):
            open_store(tmp_path)
    assert second() == ""


def test_users_of_one_directory_share_a_store(tmp_path):
    one = shared.acquire(tmp_path / "log", fsync_s=3_600.0)
    other = shared.acquire(tmp_path / "." / "log")
    assert one is other
    shared.release(one)
    append(other.create_topic("t", 1).partitions[0], b"a")
    shared.release(other)
    with open_store(tmp_path / "log") as store:
        assert values(store.partition("t", 0)) == [b"a"]


FULL_DISK = """
import json, resource, sys
from pathlib import Path
from k2.errors import LogError
from tests.local_log.logs import append, open_store, values
store = open_store(Path(sys.argv[1]))
log = store.create_topic("t", 1).partitions[0]
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
kept, failed = [], 0
for round in range(3):
    resource.setrlimit(resource.RLIMIT_FSIZE, ((round + 1) * 5_000, hard))
    for n in range(10):
        value = b"%d-%d-" % (round, n) + bytes(range(250)) * 3
        try:
            append(log, value)
            kept.append(value.hex())
        except LogError as exc:
            assert "File too large" in exc.message, exc.message
            failed += 1
            assert log.directory.joinpath("0" * 20 + ".log").stat().st_size == log.size
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
append(log, b"last")
kept.append(b"last".hex())
assert [value.hex() for value in values(log)] == kept
store.close()
print(json.dumps([kept, failed]))
"""


def test_the_file_system_refusing_writes(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kept, failed = json.loads(done.stdout.splitlines()[-1])
    assert failed > 5
    assert len(kept) > 10
    with open_store(tmp_path) as store:
        assert [value.hex() for value in values(store.partition("t", 0))] == kept


def test_the_sync_thread_syncs(tmp_path):
    with open_store(tmp_path, fsync_s=0.01) as store:
        log = store.create_topic("t", 1).partitions[0]
        append(log, b"a")
        while log._synced_end < 1:  # bounded by the test's timeout
            store._closing.wait(0.005)
        assert len(segments(log)) == 1
