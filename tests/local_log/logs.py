"""Writing, reading and crashing embedded logs in tests."""

from k2.transport.local.format import encode, parse_header, records_of
from k2.transport.local.store import LogStore

#: Longer than any test: syncs happen when asked for.
NEVER_S = 3_600.0


def batch(values, keys=None, timestamp_ms=1_000, headers=()):
    keys = keys or [b"key"] * len(values)
    return encode(values, keys, [timestamp_ms] * len(values), headers)


def append(log, *values, **options):
    return log.append(batch(list(values), **options))


def batches(log, offset=None, max_bytes=1):
    """(base offset, [(offset, key, value)]) of every batch, read one by one."""
    asked = None
    offset = log.start_offset if offset is None else offset
    found = []
    while (chunk := log.read(offset, max_bytes)) is not None:
        position = 0
        while position < len(chunk.data):
            header = parse_header(chunk.data, position)
            raw = chunk.data[position : position + header.size]
            rows = [
                (header.base_offset + row.delta, row.key, row.value)
                for row in records_of(raw, header.base_offset)
                # Compaction may have made one batch of what was read in part before.
                if asked is None or header.base_offset + row.delta >= offset
            ]
            found.append((header.base_offset, rows))
            position += header.size
        assert chunk.next_offset > offset
        asked = offset = chunk.next_offset
    return found


def values(log, **options):
    return [value for _, rows in batches(log, **options) for _, _, value in rows]


def offsets(log, **options):
    return [offset for _, rows in batches(log, **options) for offset, _, _ in rows]


def open_store(directory, **options):
    options.setdefault("fsync_s", NEVER_S)
    return LogStore(directory, **options)


def crash(store):
    """What the death of the process leaves: no clean mark, the lock free."""
    store._closing.set()
    store._sync_thread.join()
    for log in store._partitions():
        log._fd = log._fd if log._fd is None else store._files.close(log._fd)
        for fd in log._closed_fds:
            store._files.close(fd)
    store._directory_lock.release()


def segments(log):
    return sorted(log.directory.glob("*.log"))
