"""Faust apps on `local://`, each started, stopped and started again in this process."""

import asyncio
import contextlib
import uuid
from pathlib import Path

import faust
import pytest
from faust.types import TP
from yarl import URL

from k2.errors import ConfigError, LogError, LogLockedError, RetentionGapError
from k2.settings import Kafka
from k2.testing.clock import eventually
from k2.transport.admin import LogAdmin, TopicSpec
from k2.transport.batch import OutBatch
from k2.transport.local import shared
from k2.transport.local.driver import directory_of
from k2.transport.local.files import Files
from k2.transport.registry import batch_topic, registry
from tests.local_log.logs import crash, open_store
from tests.transport.drivers import running

PATIENCE_S = 20.0


def make_app(directory, **options):
    fsync_s = options.pop("fsync_s", 3_600.0)
    app = faust.App(
        "app",
        broker=f"local://{directory / 'log'}",
        datadir=str(directory / uuid.uuid4().hex),
        web_enabled=False,
        topic_partitions=4,
        broker_commit_interval=0.2,
        **options,
    )
    registry(app).kafka = Kafka(fsync_s=fsync_s)
    return app


async def until(condition):
    await eventually(condition, PATIENCE_S)


async def crashed(app):
    """The error a worker stops with."""
    app.finalize()
    task = asyncio.ensure_future(app.start())
    try:
        async with asyncio.timeout(PATIENCE_S):
            while app._crash_reason is None:
                if task.done() and task.exception() is not None:
                    return task.exception()
                await asyncio.sleep(0.01)
        return app._crash_reason
    finally:
        task.cancel()
        with contextlib.suppress(BaseException):
            await app.stop()


@pytest.mark.parametrize(
    ("url", "directory"),
    [
        ("local:///var/lib/k2", "/var/lib/k2"),
        ("local:///a%20b/log", "/a b/log"),
        ("local://data/log", "data/log"),
        ("local://log", "log"),
    ],
)
def test_urls_name_directories(url, directory):
    assert directory_of(URL(url)) == Path(directory)


async def test_the_transport_is_the_admin(tmp_path):
    admin = make_app(tmp_path).transport
    assert isinstance(admin, LogAdmin)
    spec = TopicSpec("t", 2, compacted=True, retention_s=60.0, config={"segment.bytes": "9"})
    await admin.ensure_topics([spec])
    store = shared.acquire(tmp_path / "log")
    config = store.topic("t").config
    assert (config.compacted, config.deleted) == (True, False)
    assert (config.retention_ms, config.segment_bytes) == (60_000, 9)
    shared.release(store)
    await admin.close()


class Counting:
    """Sums per key in a table; a GlobalTable, record batches and a timer beside."""

    def __init__(self, directory, **options):
        self.app = app = make_app(directory, **options)
        self.batches = []
        self.ticks = 0
        self.numbers = app.topic("numbers", key_type=str, value_type=int, partitions=4)
        self.sums = app.Table("sums", default=int, partitions=4)
        self.level = app.GlobalTable("level", default=int, partitions=1, recovery_buffer_size=1)
        self.levels = app.topic("levels", key_type=str, value_type=int, partitions=1)

        @app.agent(batch_topic(app, "batches", partitions=4))
        async def batches(stream):
            async for batch in stream:
                self.batches.append(batch)

        @app.agent(self.numbers)
        async def numbers(stream):
            async for key, value in stream.items():
                self.sums[key] += value

        @app.agent(self.levels)
        async def levels(stream):
            async for key, value in stream.items():
                self.level[key] = value

        @app.timer(0.05)
        async def tick():
            self.ticks += 1

    async def topics(self):
        await self.app.transport.ensure_topics(
            [TopicSpec("batches", 4), TopicSpec("numbers", 4), TopicSpec("levels", 1)]
        )
        return self

    async def feed(self, start, stop):
        for n in range(start, stop):
            await self.numbers.send(key=f"k{n % 3}", value=n)
        await self.app.producer.flush()

    def total(self):
        return sum(self.sums.values())


async def test_tables_and_positions_outlive_the_worker(tmp_path):
    one = await Counting(tmp_path).topics()
    async with running(one.app):
        await one.feed(0, 100)
        await one.levels.send(key="now", value=3)
        sent = await one.app.producer.send_batch(
            OutBatch("batches", 2, [b"a", b"b"], [b"k", None], headers=(("h", b"1"),))
        )
        assert sent == 0
        await until(lambda: one.total() == sum(range(100)) and one.batches and one.level["now"])
        await until(lambda: one.ticks >= 2)
        batch = one.batches[0]
        assert (batch.partition, batch.values, batch.keys) == (2, [b"a", b"b"], [b"k", None])
        assert batch.headers == {0: (("h", b"1"),)}
    two = await Counting(tmp_path).topics()
    async with running(two.app):
        assert two.total() == sum(range(100))
        assert two.level["now"] == 3
        await two.feed(100, 200)
        await until(lambda: two.total() == sum(range(200)))
        assert two.batches == []


async def test_tables_recover_from_compacted_changelogs(tmp_path):
    one = await Counting(tmp_path).topics()
    async with running(one.app):
        for n in range(30):
            await one.feed(n * 10, n * 10 + 10)
            expected = sum(range(n * 10 + 10))
            await until(lambda expected=expected: one.total() == expected)
            if n % 3 == 2:
                store = one.app.transport.store(one)
                for log in store.topic("app-sums-changelog").partitions:
                    log._roll_next = True
                await asyncio.to_thread(store.maintain)
        one.app.transport.release(one)
    two = Counting(tmp_path)
    async with running(two.app):
        assert two.total() == sum(range(300))


async def test_a_worker_that_died_goes_on(tmp_path):
    one = await Counting(tmp_path).topics()
    async with running(one.app):
        await one.feed(0, 50)
        await until(lambda: one.total() == sum(range(50)))
        await one.app.consumer.commit()
    store = open_store(tmp_path / "log")
    crash(store)  # no clean mark: the next start checks the files
    two = Counting(tmp_path)
    async with running(two.app):
        assert two.total() == sum(range(50))
        await two.feed(50, 60)
        await until(lambda: two.total() == sum(range(60)))


async def test_every_append_synced(tmp_path):
    one = await Counting(tmp_path, fsync_s=0).topics()
    async with running(one.app):
        await one.feed(0, 100)
        sends = [
            one.app.producer.send_batch(OutBatch("batches", 0, [b"%d" % n], [None]))
            for n in range(20)
        ]
        assert await asyncio.gather(*sends) == list(range(20))
        await until(lambda: one.total() == sum(range(100)))


async def test_small_and_large_appends_keep_the_order_of_calls(tmp_path):
    one = await Counting(tmp_path).topics()
    async with running(one.app):
        producer, sent = one.app.producer, []
        for n in range(30):
            size = 200_000 if n % 3 == 0 else 10
            value = b"%02d" % n + bytes(size)
            if n % 3 == 2:
                sent.append(await producer.send("batches", None, value, 1, None, None))
            else:
                sent.append(producer.send_batch(OutBatch("batches", 1, [value], [None])))
        await asyncio.gather(*sent)

        def order():
            return [value[:2] for batch in one.batches for value in batch.values]

        await until(lambda: len(order()) == 30)
        assert order() == [b"%02d" % n for n in range(30)]


async def test_retention_overtaking_a_consumer_of_batches_stops_the_worker(tmp_path):
    one = await Counting(tmp_path).topics()
    tp = TP("batches", 0)
    async with running(one.app):
        one.app.consumer.pause_partitions({tp})
        await one.app.producer.send_batch(OutBatch("batches", 0, [b"a"] * 10, [None] * 10))
        log = one.app.transport.store(one).partition(*tp)
        log.delete_below(5)
        one.app.transport.release(one)
        one.app.consumer.resume_partitions({tp})
        await until(lambda: one.app._crash_reason is not None)
        assert isinstance(one.app._crash_reason, RetentionGapError)


@pytest.mark.parametrize("size", [10, 200_000])
async def test_what_the_disk_refuses_fails_and_nothing_of_it_is_there(tmp_path, size):
    class Full(Files):
        full = False

        def write_at(self, fd, data, position):
            if self.full:
                raise OSError(28, "No space left on device")
            super().write_at(fd, data, position)

    files = Full()
    held = shared.acquire(tmp_path / "log", fsync_s=3_600.0, files=files)
    one = await Counting(tmp_path).topics()
    async with running(one.app):
        producer = one.app.producer
        files.full = True
        big = producer.send_batch(OutBatch("batches", 0, [bytes(size)], [None]))
        small = await producer.send("batches", None, b"x", 0, None, None)
        for sent in (big, small):
            with pytest.raises(LogError, match="No space left on device"):
                await sent
        files.full = False
        with pytest.raises(LogError, match="start again"):
            await producer.send_batch(OutBatch("batches", 0, [b"behind a hole"], [None]))
        await producer.send_and_wait("batches", None, b"after", 0, None, None)
        await until(lambda: len(one.batches) == 1)
        assert [batch.values for batch in one.batches] == [[b"after"]]
    shared.release(held)


async def test_a_message_that_comes_as_the_producer_stops_is_in_the_log(tmp_path, monkeypatch):
    one = await Counting(tmp_path).topics()
    held = shared.acquire(tmp_path / "log", fsync_s=3_600.0)
    producer = one.app.producer
    await producer.start()
    drain, late = producer._drain, []

    async def drain_and_get_one_more():
        await drain()
        if not late:
            late.append(await producer.send("batches", None, b"late", 0, None, None))

    monkeypatch.setattr(producer, "_drain", drain_and_get_one_more)
    first = await producer.send("batches", None, b"first", 0, None, None)
    await producer.stop()
    assert [(await sent).offset for sent in (first, *late)] == [0, 1]
    assert held.partition("batches", 0).end_offset == 2
    shared.release(held)


async def test_keys_go_where_kafka_puts_them(tmp_path):
    one = await Counting(tmp_path).topics()
    async with running(one.app):
        # Hashes of Kafka's own UtilsTest: -790332482 and -973932308, sign bit cut, modulo 4.
        assert one.app.producer.key_partition("numbers", b"foobar") == TP("numbers", 2)
        assert one.app.producer.key_partition("numbers", b"21") == TP("numbers", 0)


async def test_a_subscribed_topic_that_is_missing_stops_the_worker(tmp_path):
    app = make_app(tmp_path)

    @app.agent(app.topic("nowhere", value_type=bytes))
    async def read(stream):
        async for _ in stream:
            pass

    error = await crashed(app)
    assert isinstance(error, LogError)
    assert "nowhere" in str(error)


async def test_a_worker_without_the_lock_stops(tmp_path):
    (tmp_path / "log").mkdir()
    store = open_store(tmp_path / "log")
    try:
        error = await crashed(Counting(tmp_path).app)
        assert isinstance(error, LogLockedError)
    finally:
        store.close()


async def test_another_partition_count_stops_the_worker(tmp_path):
    one = await Counting(tmp_path).topics()
    await one.app.transport.close()
    with pytest.raises(ConfigError, match="'numbers' has 4 partitions, not 8"):
        await one.app.transport.ensure_topics([TopicSpec("numbers", 8)])
    await one.app.transport.close()


async def test_exactly_once_is_refused(tmp_path):
    app = make_app(tmp_path, processing_guarantee="exactly_once")
    app.in_worker = True
    with pytest.raises(ConfigError, match="needs Kafka"):
        await app.producer.start()
