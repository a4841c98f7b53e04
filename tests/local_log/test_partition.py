import os
import threading

import pytest
from aiokafka.record.memory_records import MemoryRecords

from k2.errors import LogCorruptError, LogError, RetentionGapError
from k2.transport.local.files import Files
from tests.local_log.logs import (
    append,
    batch,
    batches,
    crash,
    offsets,
    open_store,
    segments,
    values,
)


@pytest.fixture
def store(tmp_path):
    store = open_store(tmp_path / "log")
    yield store
    store.close()


def topic(store, name="t", partitions=1, **config):
    config = {key.replace("_", "."): str(value) for key, value in config.items()}
    return store.create_topic(name, partitions, config).partitions[0]


def test_the_bytes_are_those_of_a_broker(store):
    log = topic(store)
    append(log, b"a", b"b")
    append(log, b"x" * 5_000, None, headers=(("k2-cover", b"1"),))
    records = MemoryRecords(segments(log)[0].read_bytes())
    found = []
    while records.has_next():
        one = records.next_batch()
        assert one.validate_crc()
        found.append((one.base_offset, one.compression_type, [r.value for r in one]))
    assert found == [(0, 0, [b"a", b"b"]), (2, 3, [b"x" * 5_000, None])]


def test_headers_are_on_the_first_record_only(store):
    log = topic(store)
    append(log, b"a", b"b", headers=(("h", b"1"), ("h", b"2")))
    records = MemoryRecords(bytes(log.read(0, 1_000).data))
    assert [r.headers for r in records.next_batch()] == [[("h", b"1"), ("h", b"2")], []]


def test_reads_start_at_the_batch_that_holds_the_offset(store):
    log = topic(store)
    for n in range(100):
        append(log, *[b"%d" % (n * 10 + i) for i in range(10)])
    assert batches(log, 355)[0][0] == 350
    assert values(log, offset=990) == [b"%d" % n for n in range(990, 1_000)]
    assert log.read(1_000, 1) is None
    assert log.end_offset == 1_000


@pytest.mark.parametrize("size", [10, 5_000, 40_000])
def test_reads_find_their_place_whatever_the_batch_size(store, size):
    log = topic(store, segment_bytes=200_000)
    for n in range(40):
        append(log, os.urandom(size), b"%d" % n)
    for n in range(40):
        assert batches(log, n * 2 + 1)[0][1][1][2] == b"%d" % n


def test_a_read_is_bounded_but_never_empty(store):
    log = topic(store)
    for _ in range(10):
        append(log, os.urandom(1_000))
    one = log.read(0, 1).next_offset
    assert one == 1
    assert log.read(0, 3_500).next_offset == 3
    assert log.read(0, 10**6).next_offset == 10


def test_segments_roll_by_size_and_read_on(store):
    log = topic(store, segment_bytes=3_000)
    for n in range(20):
        append(log, b"%02d" % n + os.urandom(1_000))
    assert len(segments(log)) == 10
    assert [value[:2] for value in values(log)] == [b"%02d" % n for n in range(20)]


@pytest.mark.parametrize("max_bytes", [1, 900, 1_500, 2_500, 4_000, 10**6])
def test_reads_of_any_size_leave_nothing_out(store, max_bytes):
    log = topic(store, segment_bytes=5_000)
    for n in range(50):
        append(log, b"%02d" % n + os.urandom(100 + n * 37 % 1_300))
    assert [value[:2] for value in values(log, max_bytes=max_bytes)] == [
        b"%02d" % n for n in range(50)
    ]


def test_a_reader_never_sees_half_a_batch(store):
    log = topic(store, segment_bytes=300_000)
    count, seen = 300, []

    def read():
        offset = 0
        while offset < count * 50:
            chunk = log.read(offset, 64_000)
            if chunk is not None:
                records = MemoryRecords(bytes(chunk.data))
                while records.has_next():
                    one = records.next_batch()
                    assert one.validate_crc()
                    seen.extend(record.offset for record in one)
                offset = chunk.next_offset

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(count):
        log.append(batch([os.urandom(20) for _ in range(50)]))
    for reader in readers:
        reader.join()
    assert sorted(seen) == sorted(list(range(count * 50)) * 2)


def test_listeners_hear_of_appends_until_they_stop(store):
    log = topic(store)
    heard = []
    stop = log.listen(lambda: heard.append(log.end_offset))
    append(log, b"a")
    stop()
    append(log, b"b")
    assert heard == [1]


def test_a_clean_close_is_believed_and_a_crash_is_checked(tmp_path):
    store = open_store(tmp_path)
    append(topic(store), b"a", b"b")
    store.close()
    store = open_store(tmp_path)
    assert not store.partition("t", 0)._segments[-1].indexed
    append(store.partition("t", 0), b"c")
    crash(store)
    with open_store(tmp_path) as store:
        assert store.partition("t", 0)._segments[-1].indexed
        assert values(store.partition("t", 0)) == [b"a", b"b", b"c"]


def test_what_is_appended_after_a_clean_open_is_indexed_when_read(tmp_path):
    with open_store(tmp_path) as store:
        for _ in range(50):
            append(topic(store), os.urandom(1_000))
    with open_store(tmp_path) as store:
        log = store.partition("t", 0)
        for n in range(50):
            append(log, b"%d" % n + os.urandom(1_000))
        assert offsets(log) == list(range(100))
        append(log, b"last")
        assert values(log, offset=100) == [b"last"]


@pytest.mark.parametrize("cut", [1, 30, 61, 100])
def test_a_torn_tail_is_cut_off(tmp_path, cut, capsys):
    store = open_store(tmp_path)
    log = topic(store)
    for n in range(3):
        append(log, b"%d" % n + os.urandom(50))
    crash(store)
    path = segments(log)[0]
    size = path.stat().st_size
    os.truncate(path, size - cut)
    with open_store(tmp_path) as store:
        log = store.partition("t", 0)
        assert [value[:1] for value in values(log)] == [b"0", b"1"]
        assert path.stat().st_size == size // 3 * 2
        assert f"bytes={size // 3 - cut}" in capsys.readouterr().out
        assert append(log, b"again") == 2
        assert values(log)[2] == b"again"


def test_garbage_after_the_end_is_cut_off(tmp_path):
    store = open_store(tmp_path)
    log = topic(store)
    append(log, b"a")
    crash(store)
    with segments(log)[0].open("ab") as file:
        file.write(b"\x02" * 5_000)
    with open_store(tmp_path) as store:
        assert values(store.partition("t", 0)) == [b"a"]


@pytest.mark.parametrize("at", [3, 9, 16, 20, 40, 70])
def test_damage_before_a_valid_batch_is_an_error_that_names_it(tmp_path, at):
    store = open_store(tmp_path)
    log = topic(store)
    for _ in range(3):
        append(log, os.urandom(50))
    crash(store)
    path = segments(log)[0]
    start = path.stat().st_size // 3
    raw = bytearray(path.read_bytes())
    raw[start + at] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(LogCorruptError) as caught:
        open_store(tmp_path)
    assert caught.value.details == {"file": str(path), "position": start}
    assert path.read_bytes() == raw


def test_a_damaged_last_batch_is_a_torn_tail(tmp_path):
    store = open_store(tmp_path)
    log = topic(store)
    append(log, b"a" * 50)
    append(log, b"b" * 50)
    crash(store)
    path = segments(log)[0]
    raw = bytearray(path.read_bytes())
    raw[-10] ^= 0xFF
    path.write_bytes(raw)
    with open_store(tmp_path) as store:
        assert values(store.partition("t", 0)) == [b"a" * 50]


def test_damage_in_a_closed_file_is_found_when_it_is_read(tmp_path):
    with open_store(tmp_path) as store:
        log = topic(store, segment_bytes=2_000)
        for _ in range(6):
            append(log, os.urandom(900))
        path = segments(log)[1]
        raw = bytearray(path.read_bytes())
        raw[1_500] ^= 0xFF
        path.write_bytes(raw)
        assert log.read(0, 10_000).next_offset == 3  # what is whole comes first
        with pytest.raises(LogCorruptError, match="fails its CRC") as caught:
            log.read(3, 10_000)
        assert caught.value.details["file"] == str(path)


class FullDisk(Files):
    """Writes `room` bytes in all, then fails as a full disk does: after a short write."""

    room = None
    truncates = True
    syncs = True

    def write_at(self, fd, data, position):
        if self.room is None or len(data) <= self.room:
            super().write_at(fd, data, position)
            if self.room is not None:
                self.room -= len(data)
            return
        super().write_at(fd, bytes(data)[: self.room], position)
        self.room = 0
        raise OSError(28, "No space left on device")

    def truncate(self, fd, size):
        if not self.truncates:
            raise OSError(5, "Input/output error")
        super().truncate(fd, size)

    def sync(self, fd):
        if not self.syncs:
            raise OSError(5, "Input/output error")
        super().sync(fd)


@pytest.fixture
def full(tmp_path):
    files = FullDisk()
    store = open_store(tmp_path / "log", files=files)
    yield store, files
    files.room, files.truncates = None, True
    store.close()


def test_a_failed_append_leaves_nothing_and_later_ones_work(full):
    store, files = full
    log = topic(store)
    append(log, b"a")
    size = segments(log)[0].stat().st_size
    files.room = 30
    with pytest.raises(LogError, match=r"t\[0\].*No space left on device"):
        append(log, b"b" * 500)
    assert segments(log)[0].stat().st_size == size
    assert log.end_offset == 1
    files.room = None
    assert append(log, b"c") == 1
    assert values(log) == [b"a", b"c"]


def test_what_could_not_be_cut_off_is_cut_off_before_the_next_append(full):
    store, files = full
    log = topic(store)
    append(log, b"a")
    files.room, files.truncates = 30, False
    with pytest.raises(LogError):
        append(log, b"b" * 500)
    with pytest.raises(LogError):
        append(log, b"c")
    files.room, files.truncates = None, True
    append(log, b"d")
    crash(store)
    with open_store(store.directory) as again:
        assert values(again.partition("t", 0)) == [b"a", b"d"]
    store._topics = {}


def test_after_a_failed_sync_nothing_is_promised(tmp_path):
    files = FullDisk()
    store = open_store(tmp_path, files=files)
    log = topic(store)
    append(log, b"a")
    files.syncs = False
    with pytest.raises(LogError, match="cannot sync"):
        log.sync()
    files.syncs = True
    with pytest.raises(LogError, match="an earlier sync failed"):
        append(log, b"b")
    store.close()


def test_fsync_every_append(tmp_path):
    synced = []

    class Counting(Files):
        def sync(self, fd):
            synced.append(fd)
            super().sync(fd)

    with open_store(tmp_path, fsync_s=0, files=Counting()) as store:
        log = topic(store, segment_bytes=2_000)
        synced.clear()
        for _ in range(5):
            append(log, os.urandom(900))
        assert len(synced) == 5


def test_appends_wait_for_a_sync_when_too_many_offsets_are_unsynced(tmp_path):
    synced = []

    class Counting(Files):
        def sync(self, fd):
            synced.append(fd)
            super().sync(fd)

    with open_store(tmp_path, files=Counting()) as store:
        log = topic(store)
        synced.clear()
        for _ in range(9):
            log.append(batch([None] * 8_192))
        assert len(synced) == 1


def test_bytes_that_are_no_batch_are_refused(store):
    log = topic(store)
    with pytest.raises(LogError, match="not one record batch"):
        log.append(bytearray(b"x" * 100))
    with pytest.raises(LogError, match="not one record batch"):
        log.append(batch([b"a"]) + batch([b"b"]))
    with pytest.raises(LogError, match="at most 65536 records"):
        log.append(batch([None] * 65_537))


def test_a_power_failure_leaves_offsets_out_but_a_crash_does_not(tmp_path):
    store = open_store(tmp_path)
    log = topic(store)
    append(log, b"a", b"b")
    crash(store)
    (tmp_path / "boot").write_bytes(b"another boot")
    store = open_store(tmp_path)
    log = store.partition("t", 0)
    assert log.end_offset == 65_538
    hole = log.read(2, 1_000)
    assert (bytes(hole.data), hole.next_offset) == (b"", 65_538)
    assert append(log, b"c") == 65_538
    assert values(log) == [b"a", b"b", b"c"]
    crash(store)
    with open_store(tmp_path) as store:
        log = store.partition("t", 0)
        assert (values(log), log.end_offset) == ([b"a", b"b", b"c"], 65_539)


def test_below_the_earliest_offset_is_an_error(tmp_path):
    with open_store(tmp_path) as store:
        log = topic(store, segment_bytes=1)
        for n in range(3):
            append(log, b"%d" % n, b"and")
        log.delete_below(3)
        assert (log.start_offset, len(segments(log))) == (3, 2)
        with pytest.raises(RetentionGapError, match="the earliest is 3"):
            log.read(2, 1)
    with open_store(tmp_path) as store:
        log = store.partition("t", 0)
        assert (log.start_offset, values(log)) == (3, [b"1", b"and", b"2", b"and"])
        log.delete_below(100)
        assert (log.start_offset, log.end_offset) == (6, 6)
