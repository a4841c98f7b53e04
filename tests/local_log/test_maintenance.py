import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2.errors import LogError, RetentionGapError
from k2.testing.clock import ManualClock
from k2.transport.local.files import Files
from tests.local_log.logs import append, batches, crash, offsets, open_store, segments, values

DAY_S = 86_400


@pytest.fixture
def clock():
    return ManualClock()


def now_ms(clock):
    return clock.now_us() // 1_000


def compacted(store, **config):
    config = {"cleanup.policy": "compact", "segment.bytes": "1", **config}
    return store.create_topic("c", 1, config).partitions[0]


async def test_retention_by_time_deletes_whole_closed_files(tmp_path, clock):
    config = {"retention.ms": str(3 * DAY_S * 1_000), "segment.bytes": "1"}
    with open_store(tmp_path, clock=clock) as store:
        log = store.create_topic("t", 1, config).partitions[0]
        for n in range(5):
            append(log, b"%d" % n, timestamp_ms=now_ms(clock))
            await clock.advance(DAY_S)
        store.maintain()
        assert (log.start_offset, values(log)) == (2, [b"2", b"3", b"4"])
        await clock.advance(30 * DAY_S)
        store.maintain()
        assert (log.start_offset, values(log)) == (4, [b"4"])
        assert len(segments(log)) == 1


async def test_a_file_is_closed_by_age(tmp_path, clock):
    with open_store(tmp_path, clock=clock) as store:
        log = store.create_topic("t", 1, {"segment.ms": "1000"}).partitions[0]
        append(log, b"a", timestamp_ms=now_ms(clock))
        store.maintain()
        append(log, b"b", timestamp_ms=now_ms(clock))
        assert len(segments(log)) == 1
        await clock.advance(1)
        store.maintain()
        append(log, b"c", timestamp_ms=now_ms(clock))
        assert len(segments(log)) == 2


def test_retention_by_size_keeps_at_least_as_much(tmp_path):
    with open_store(tmp_path) as store:
        config = {"retention.bytes": "250", "segment.bytes": "1"}
        log = store.create_topic("t", 1, config).partitions[0]
        for n in range(10):
            append(log, b"%d" % n * 20)  # about 100 bytes each
        store.maintain()
        assert [value[:1] for value in values(log)] == [b"7", b"8", b"9"]


def test_without_retention_everything_stays(tmp_path, clock):
    with open_store(tmp_path, clock=clock) as store:
        log = store.create_topic("t", 1, {"segment.bytes": "1"}).partitions[0]
        append(log, b"a", timestamp_ms=0)
        append(log, b"b", timestamp_ms=0)
        store.maintain()
        assert values(log) == [b"a", b"b"]


def test_compaction_keeps_the_newest_of_each_key_at_its_offset(tmp_path):
    with open_store(tmp_path) as store:
        log = compacted(store)
        for n in range(30):
            append(log, b"%d" % n, keys=[b"k%d" % (n % 3)])
        store.maintain()
        rows = [row for _, found in batches(log) for row in found]
        assert rows == [
            (26, b"k2", b"26"),
            (27, b"k0", b"27"),
            (28, b"k1", b"28"),
            (29, b"k2", b"29"),  # the open file is never compacted
        ]
        assert (log.start_offset, log.end_offset, len(segments(log))) == (0, 30, 2)
        assert append(log, b"30", keys=[b"k0"]) == 30
    with open_store(tmp_path) as store:
        assert offsets(store.partition("c", 0)) == [26, 27, 28, 29, 30]


async def test_tombstones_outlive_slow_readers_and_then_go(tmp_path, clock):
    with open_store(tmp_path, clock=clock) as store:
        log = compacted(store, **{"delete.retention.ms": "60000"})
        for key, value in ((b"a", b"1"), (b"b", b"1"), (b"a", None), (b"c", b"1"), (b"d", b"1")):
            append(log, value, keys=[key], timestamp_ms=now_ms(clock))
        store.maintain()
        assert offsets(log) == [1, 2, 3, 4]
        await clock.advance(61)
        for n in range(5):
            append(log, b"%d" % n * 30, keys=[b"e"], timestamp_ms=now_ms(clock))
        store.maintain()
        assert offsets(log) == [1, 3, 4, 8, 9]


def test_the_last_record_stays_even_as_an_old_tombstone(tmp_path):
    with open_store(tmp_path) as store:
        log = compacted(store)
        append(log, b"1", keys=[b"a"], timestamp_ms=0)
        append(log, None, keys=[b"a"], timestamp_ms=0)
        log._roll_next = True
        append(log, b"x", keys=[b"b"])
        store.maintain()
        assert offsets(log) == [1, 2]


def test_records_without_key_stay(tmp_path):
    with open_store(tmp_path) as store:
        log = compacted(store)
        for n in range(4):
            append(log, b"%d" % n, keys=[None])
        store.maintain()
        assert offsets(log) == [0, 1, 2, 3]


def test_thousands_of_small_batches_become_few(tmp_path):
    with open_store(tmp_path) as store:
        log = store.create_topic(
            "c", 1, {"cleanup.policy": "compact", "segment.bytes": "20000"}
        ).partitions[0]
        for n in range(1_000):
            append(log, b"value", keys=[b"%d" % n])
        store.maintain()
        assert offsets(log) == list(range(1_000))
        assert len(batches(log, max_bytes=10**6)) < 300


class Failing(Files):
    fail_replace = False
    fail_remove = False

    def replace(self, source, target):
        if self.fail_replace and target.suffix == ".log":
            raise OSError(5, "Input/output error")
        super().replace(source, target)

    def remove(self, path):
        if self.fail_remove and path.suffix == ".log":
            raise OSError(5, "Input/output error")
        super().remove(path)


def test_a_compaction_that_cannot_finish_changes_nothing(tmp_path):
    files = Failing()
    store = open_store(tmp_path, files=files)
    log = compacted(store)
    for n in range(4):
        append(log, b"%d" % n, keys=[b"k"])
    files.fail_replace = True
    with pytest.raises(Exception, match="cannot delete or compact"):
        store.maintain()
    assert offsets(log) == [0, 1, 2, 3]
    files.fail_replace = False
    store.maintain()
    assert offsets(log) == [2, 3]
    store.close()


def test_leftovers_of_a_compaction_cut_short_are_recognised(tmp_path):
    files = Failing()
    store = open_store(tmp_path, files=files)
    log = compacted(store)
    for n in range(6):
        append(log, b"%d" % n, keys=[b"k%d" % (n % 2)])
    files.fail_remove = True
    with pytest.raises(Exception, match="cannot delete or compact"):
        store.maintain()
    assert len(segments(log)) == 6
    crash(store)
    with open_store(tmp_path) as store:
        log = store.partition("c", 0)
        assert offsets(log) == [3, 4, 5]
        assert len(segments(log)) == 2


Rows = st.lists(
    st.tuples(
        st.sampled_from([b"a", b"b", b"c", b"d"]), st.one_of(st.none(), st.binary(max_size=9))
    )
)


@given(rounds=st.lists(Rows, max_size=6), reopen=st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_reader_of_a_compacted_log_ends_with_the_same_table(tmp_path_factory, rounds, reopen):
    directory = tmp_path_factory.mktemp("log")
    table, end = {}, 0
    store = open_store(directory, clock=ManualClock())
    log = compacted(store, **{"segment.bytes": "150", "delete.retention.ms": "0"})
    for rows in rounds:
        for key, value in rows:
            append(log, value, keys=[key])
            table[key] = value
            end += 1
        store.maintain()
        if reopen:
            store.close()
            store = open_store(directory, clock=ManualClock())
            log = store.partition("c", 0)
    read = {}
    found = [row for _, rows in batches(log) for row in rows]
    for _, key, value in found:
        read[key] = value
    alive = {key: value for key, value in table.items() if value is not None}
    assert {key: value for key, value in read.items() if value is not None} == alive
    assert log.end_offset == end
    assert not found or found[-1][0] == end - 1
    store.close()


def test_readers_are_not_disturbed_by_compaction_and_retention(tmp_path):
    stop, errors, passes = threading.Event(), [], []

    def read(log):
        try:
            while not stop.is_set():
                found = [row for _, rows in batches(log, max_bytes=700) for row in rows]
                seen = [offset for offset, _, _ in found]
                assert seen == sorted(set(seen))
                assert all(value == b"%d" % offset * 9 for offset, _, value in found)
                passes.append(len(found))
        except RetentionGapError:
            read(log)  # what it was about to read was deleted: from the earliest on
        except (AssertionError, LogError) as exc:
            errors.append(exc)

    with open_store(tmp_path) as store:
        config = {"cleanup.policy": "compact,delete", "segment.bytes": "1500"}
        log = store.create_topic("c", 1, {**config, "retention.bytes": "6000"}).partitions[0]
        readers = [threading.Thread(target=read, args=(log,)) for _ in range(2)]
        for reader in readers:
            reader.start()
        for n in range(1_500):
            append(log, b"%d" % n * 9, keys=[b"%d" % (n * 7 % 40)])
            if n % 15 == 14:
                store.maintain()
        stop.set()
        for reader in readers:
            reader.join()
        assert not errors
        assert len(passes) > 2
