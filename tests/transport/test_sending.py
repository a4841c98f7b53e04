"""What every transport driver does with what is sent, on the real thing."""

import asyncio
import random

import pytest
from faust.exceptions import NotReady

from k2.errors import LogError
from k2.transport.batch import OutBatch
from tests.transport.drivers import Collector, numbered, running


async def test_large_records_pass_and_larger_ones_are_refused_with_the_remedy(driver):
    topic = await driver.topic()
    driver.settings = driver.settings.model_copy(update={"max_batch_bytes": 4_000_000})
    large = random.Random(1).randbytes(3_500_000)  # above the fetch size
    await driver.append(topic, [large])
    await driver.append(topic, [b"small"])
    with pytest.raises(LogError, match="K2_KAFKA_MAX_BATCH_BYTES"):
        await driver.append(topic, [large, large])
    collector = Collector(driver, topic)
    async with running(collector.app):
        await collector.until(lambda: len(collector.values) == 2)
    assert collector.values == [large, b"small"]


async def test_batches_sent_at_once_are_whole_and_in_order(driver):
    topic = await driver.topic()
    sizes = [random.Random(n).randrange(1, 400) for n in range(60)]
    bases = await asyncio.gather(
        *[
            driver.append(topic, numbered(n, size), headers=(("n", b"%d" % n),))
            for n, size in enumerate(sizes)
        ]
    )
    assert bases == [sum(sizes[:n]) for n in range(60)]
    collector = Collector(driver, topic)
    async with running(collector.app):
        await collector.until(lambda: len(collector.values) == sum(sizes))
    marks = {
        int(batch.offsets[row]): headers[0][1]
        for batch in collector.batches
        for row, headers in batch.headers.items()
    }
    assert marks == {base: b"%d" % n for n, base in enumerate(bases)}


@pytest.mark.parametrize("before", [0, 3])
async def test_nothing_follows_a_batch_that_was_refused(driver, monkeypatch, before):
    """Taken, what comes after would hide the loss; a new worker writes both again."""
    topic = await driver.small_topic(monkeypatch)
    for n in range(before):
        await driver.append(topic, [b"%d" % n])
    writer = await driver.writer()
    large = random.Random(1).randbytes(5_000)
    sent = [
        writer.producer.send_batch(OutBatch(topic, 0, [value], [None]))
        for value in (large, b"next", b"after")
    ]
    found = await asyncio.gather(*sent, return_exceptions=True)
    assert [type(one) for one in found] == [LogError] * 3
    with pytest.raises(LogError, match="start again"):
        await driver.append(topic, [b"later"])
    await driver.close()
    assert await driver.append(topic, [b"by a new worker"]) == before


async def test_nothing_follows_a_batch_that_was_too_large_to_send(driver):
    topic = await driver.topic()
    producer = (await driver.writer()).producer
    with pytest.raises(LogError, match="K2_KAFKA_MAX_BATCH_BYTES"):
        producer.send_batch(OutBatch(topic, 0, [bytes(3_000_000)] * 3, [None] * 3))
    with pytest.raises(LogError, match="start again"):
        await driver.append(topic, [b"small"])


async def test_who_waits_for_a_batch_may_be_cancelled_the_batch_may_not(driver):
    topic = await driver.topic()
    producer = (await driver.writer()).producer
    sent = [
        producer.send_batch(OutBatch(topic, 0, [b"%d" % n] * 1_000, [None] * 1_000))
        for n in range(5)
    ]
    for one in sent:
        one.cancel()
    assert await driver.append(topic, [b"after"]) == 5_000


async def test_a_producer_that_has_stopped_takes_nothing(driver):
    topic = await driver.topic()
    producer = (await driver.writer()).producer
    await driver.append(topic, [b"x"])
    await driver.close()
    with pytest.raises((LogError, NotReady), match=r"has stopped|not yet started"):
        await producer.send_batch(OutBatch(topic, 0, [b"late"], [None]))
    assert await driver.append(topic, [b"y"]) == 1


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (OutBatch("t", 0, [], []), "single record with the value None"),
        (OutBatch("t", 0, [b"a"], []), "1 values but 0 keys"),
    ],
)
async def test_a_malformed_batch_is_refused_at_once(driver, batch, message):
    writer = await driver.writer()
    with pytest.raises(LogError, match=message):
        writer.producer.send_batch(batch)


async def test_a_batch_for_a_partition_that_is_not_there_is_refused(driver):
    topic = await driver.topic()
    with pytest.raises(LogError, match="partition 7"):
        await driver.append(topic, [b"x"], partition=7)


async def test_plain_messages_and_batches_share_a_partition(driver):
    topic = await driver.topic()
    writer = await driver.writer()
    sent = []
    for n in range(10):
        sent.append(await writer.producer.send(topic, b"k", b"p%d" % n, 0, None, None))
        sent.append(writer.producer.send_batch(OutBatch(topic, 0, [b"b%d" % n], [None])))
    await asyncio.gather(*sent)
    collector = Collector(driver, topic)
    async with running(collector.app):
        await collector.until(lambda: len(collector.values) == 20)
    assert sorted(collector.values) == sorted(
        [b"%s%d" % (k, n) for k in (b"p", b"b") for n in range(10)]
    )
