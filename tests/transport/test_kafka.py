"""What only a cluster does: rebalances, transactions, compaction, a broker that goes away."""

import asyncio
import gc
import random
import socket

import pytest
from aiokafka import AIOKafkaProducer
from faust.types import TP
from structlog.testing import capture_logs

from k2.errors import LogError, RetentionGapError
from k2.testing.kafka import KafkaServer
from k2.transport.batch import OutBatch
from k2.transport.kafka_reader import KafkaReader
from k2.transport.registry import registry
from tests.transport.drivers import PATIENCE_S, Collector, KafkaDriver, numbered, running

pytestmark = pytest.mark.kafka


@pytest.fixture
async def driver(kafka, tmp_path):
    made = KafkaDriver(kafka, tmp_path)
    yield made
    await made.close()


async def test_two_workers_share_the_partitions_and_lose_nothing(driver):
    topic = await driver.topic(partitions=4)
    driver.settings = driver.settings.model_copy(update={"batch_records": 50})
    one = Collector(driver, topic, partitions=4)
    two = Collector(driver, topic, partitions=4, app_id=one.app.conf.id)
    total = 0

    async def feed(count):
        nonlocal total
        for n in range(count):
            await driver.append(topic, numbered(total, 25), partition=n % 4)
            total += 25

    def seen():
        return {(b.partition, o) for c in (one, two) for b in c.batches for o in b.offsets.tolist()}

    async with running(one.app):
        await feed(40)
        async with running(two.app):
            await feed(40)
            await two.until(lambda: two.events)
            assert len(one.app.consumer.assignment()) == 2
            await feed(40)
            await two.until(lambda: len(seen()) == total)
        await feed(40)
        await one.until(lambda: len(seen()) == total)
        assert [await one.committed(n) for n in range(4)] == [total // 4] * 4
    # At least once: what repeats was delivered but not acked when partitions moved.
    assert sorted(seen()) == [(n, o) for n in range(4) for o in range(total // 4)]


async def test_a_moved_partition_starts_where_its_new_owner_says(driver):
    topic = await driver.topic(partitions=2)
    for n in range(2):
        await driver.append(topic, numbered(0, 100), partition=n)
    checkpoint = {TP(topic, 0): 0, TP(topic, 1): 0}

    async def resolver(tps):
        return {tp: checkpoint[tp] for tp in tps}

    one = Collector(driver, topic, partitions=2)
    two = Collector(driver, topic, partitions=2, app_id=one.app.conf.id)
    for collector in (one, two):
        registry(collector.app).positions.register(topic, resolver)
    async with running(one.app):
        await one.until(lambda: len(one.values) == 200)
        checkpoint.update({TP(topic, 0): 70, TP(topic, 1): 70})
        async with running(two.app):
            await two.until(lambda: two.values)
            await one.until(lambda: len(one.values) >= 230)
    (moved,) = {batch.partition for batch in two.batches}
    assert two.offsets(moved) == list(range(70, 100))
    assert one.offsets(1 - moved)[100:130] == list(range(70, 100))


async def test_what_connects_once_more_during_a_stop_is_closed_too(driver, monkeypatch):
    """As a commit does that a crash found at work; aiokafka has closed everything by then."""
    topic = await driver.topic()
    collector = Collector(driver, topic)
    async with running(collector.app):
        await collector.until(collector.app.consumer.assignment)
        thread = collector.app.consumer._thread
        client = thread._consumer._client
        stop, late = thread.on_thread_stop, []

        async def on_thread_stop():
            await stop()
            await client.fetch_all_metadata()
            late.extend(client._conns.values())

        monkeypatch.setattr(thread, "on_thread_stop", on_thread_stop)
    assert late
    assert not any(connection.connected() for connection in late)


async def test_markers_of_transactions_are_counted_but_not_delivered(driver):
    topic = await driver.topic()
    producer = AIOKafkaProducer(
        bootstrap_servers=driver.server.bootstrap, transactional_id=f"{topic}-t"
    )
    await producer.start()
    try:
        for value in (b"a", b"b"):
            async with producer.transaction():
                await producer.send_and_wait(topic, value)
    finally:
        await producer.stop()
    collector = Collector(driver, topic)
    async with running(collector.app):
        await collector.until(lambda: len(collector.values) == 2)
        assert collector.offsets() == [0, 2]
        assert await collector.committed() == 4


async def test_holes_of_compaction_are_committed_over(driver):
    topic = await driver.topic(
        compacted=True,
        config={
            "segment.ms": "50",
            "min.cleanable.dirty.ratio": "0.01",
            "segment.bytes": "1048576",
        },
    )
    writer = await driver.writer()
    written = 0
    async with asyncio.timeout(PATIENCE_S):
        while True:
            await driver.append(topic, [b"x"] * 50, keys=[b"%d" % (n % 5) for n in range(50)])
            written += 50
            reader = writer.transport.create_reader()
            await reader.start({TP(topic, 0): 0})
            first = await reader.getmany(1.0)
            await reader.stop()
            if first and len(first[0]) < first[0].last_offset + 1 - first[0].first_offset:
                break
            await asyncio.sleep(0.1)
    collector = Collector(driver, topic)
    async with running(collector.app):
        await collector.until(lambda: collector.offsets()[-1:] == [written - 1])
        assert await collector.committed() == written
    offsets = collector.offsets()
    assert offsets == sorted(set(offsets))
    assert len(offsets) < written


async def test_a_running_consumer_overtaken_by_retention_crashes(driver):
    topic = await driver.topic()
    driver.settings = driver.settings.model_copy(update={"batch_records": 10})
    for start in range(0, 1_000, 10):
        await driver.append(topic, numbered(start, 10))
    collector = Collector(driver, topic)
    collector.app.conf.consumer_max_fetch_size = 1  # one record batch at a time
    async with running(collector.app):
        collector.app.consumer.pause_partitions(set())
        await collector.until(lambda: collector.events)
        collector.app.consumer.pause_partitions({TP(topic, 0)})
        await driver.append(topic, numbered(1_000, 10))
        await driver.delete_below(TP(topic, 0), 1_005)
        collector.app.consumer.resume_partitions({TP(topic, 0)})
        with pytest.raises(RetentionGapError, match=f"{topic}.*retention overtook"):
            await collector.until(lambda: False)


async def read_until_it_raises(reader, into):
    async with asyncio.timeout(PATIENCE_S):
        while True:
            into += await reader.getmany(0.1)


async def test_a_reader_overtaken_by_retention_stops_loudly(driver):
    topic = await driver.topic()
    for start in range(0, 100, 10):
        await driver.append(topic, numbered(start, 10))
    reader = (await driver.writer()).transport.create_reader()
    await reader.start({TP(topic, 0): 0})
    try:
        reader._consumer._fetcher._max_partition_fetch_bytes = 1  # one record batch at a time
        read = []
        while not read:
            read = await reader.getmany(1.0)
        await driver.delete_below(TP(topic, 0), 100)
        with pytest.raises(RetentionGapError, match="retention overtook"):
            await read_until_it_raises(reader, read)
        assert read[-1].last_offset < 99
    finally:
        await reader.stop()


async def test_a_reader_that_cannot_start_leaves_nothing_open(driver):
    """Warnings are errors here: an unclosed consumer would be one."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        reader = KafkaReader(address, driver.settings, client_id="reader")
        with pytest.raises(LogError, match=address):
            await reader.start({TP("t", 0): 0})
    del reader
    gc.collect()


async def test_changelogs_may_hold_entries_as_large_as_topics(driver):
    topic = await driver.topic()
    collector = Collector(driver, topic)
    table = collector.app.Table("large", partitions=1, value_type=bytes)

    @collector.app.task
    async def write():
        await collector.app.tables.recovery.completed.wait()

    async with running(collector.app):
        await driver.append(topic, [b"x"])
        await collector.until(lambda: collector.events)
        large = random.Random(1).randbytes(3_000_000)
        changelog = table.changelog_topic.get_topic_name()
        batch = OutBatch(changelog, 0, [large[:900_000]], [b"k"])
        assert await collector.app.producer.send_batch(batch) >= 0
        sent = await collector.app.producer.send(changelog, b"k", large, 0, None, None)
        assert (await sent).offset >= 1


async def test_a_consumer_that_does_not_close_ends_its_thread(driver):
    """With the broker away aiokafka cancels itself; the worker waited a minute for the thread."""
    topic = await driver.topic()
    collector = Collector(driver, topic)

    with capture_logs() as said:
        async with running(collector.app):
            await collector.until(collector.app.consumer.assignment)
            thread = collector.app.consumer._thread
            close = thread._consumer.stop

            async def cancelled():
                await close()
                raise asyncio.CancelledError

            thread._consumer.stop = cancelled
        assert thread._shutdown.is_set()
    assert "consumer_not_closed" in {line["event"] for line in said}


@pytest.mark.heavy
async def test_batches_are_whole_once_and_in_order_when_the_broker_goes_away(tmp_path):
    server = KafkaServer(tmp_path / "kafka").start()
    driver = KafkaDriver(server, tmp_path)
    try:
        topic = await driver.topic()
        sending = []
        for n in range(40):
            sending.append(asyncio.ensure_future(driver.append(topic, numbered(n * 10, 10))))
            if n == 10:
                await asyncio.gather(*sending[:5])
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
        assert await asyncio.gather(*sending) == [n * 10 for n in range(40)]
        collector = Collector(driver, topic)
        async with running(collector.app):
            await collector.until(lambda: len(collector.values) >= 400)
        assert collector.values == numbered(0, 400)
    finally:
        await driver.close()
        server.kill()
