"""How every transport driver delivers, on the real thing."""

import asyncio

import pytest
from faust.types import TP
from structlog.testing import capture_logs

from k2.errors import LogError, RetentionGapError
from k2.transport.registry import batch_topic, registry
from tests.transport.drivers import Collector, numbered, running


async def test_a_batch_is_one_event_and_commits_whole(driver):
    topic = await driver.topic()
    for n in range(20):
        await driver.append(topic, numbered(n * 5_000, 5_000))
    collector = Collector(driver, topic)
    async with running(collector.app):
        await collector.until(lambda: len(collector.values) == 100_000)
        assert collector.values == numbered(0, 100_000)
        assert all(len(batch) == 5_000 for batch in collector.batches)
        assert await collector.committed() == 100_000


@pytest.mark.parametrize("order", [(2, 0, 1), (2, 1, 0), (1, 2, 0)])
async def test_commits_stop_at_the_first_batch_that_is_not_acked(driver, order):
    topic = await driver.topic()
    for n in range(3):
        await driver.append(topic, numbered(n * 5_000, 5_000))
    collector = Collector(driver, topic, hold=True)
    async with running(collector.app):
        await collector.until(lambda: len(collector.events) == 3)
        acked = set()
        for n in order:
            collector.events[n].ack()
            acked.add(n)
            prefix = next(k for k in range(4) if k not in acked)
            expected = prefix * 5_000 or None
            assert await collector.committed() == expected


async def test_record_batches_are_folded_up_to_the_cap_and_never_cut(driver):
    topic = await driver.topic()
    for n in range(10):
        await driver.append(topic, numbered(n * 3_000, 3_000))
    await driver.append(topic, numbered(30_000, 20_000))
    collector = Collector(driver, topic)
    async with running(collector.app):
        await collector.until(lambda: len(collector.values) == 50_000)
    assert collector.values == numbered(0, 50_000)
    cap = driver.settings.batch_records
    assert all(len(batch) <= cap or len(batch) == 20_000 for batch in collector.batches)
    assert all(int(batch.offsets[0]) % 3_000 == 0 for batch in collector.batches)


async def test_records_that_come_later_are_delivered_to_a_waiting_consumer(driver):
    topic = await driver.topic(partitions=4)
    collector = Collector(driver, topic, partitions=4)
    async with running(collector.app):
        await collector.until(collector.app.tables.recovery.completed.is_set)
        assert collector.events == []
        for n in range(8):
            await driver.append(topic, [b"x"], partition=n % 4)
            await collector.until(lambda n=n: len(collector.values) == n + 1)
        assert [await collector.committed(n) for n in range(4)] == [2, 2, 2, 2]


async def test_keys_headers_and_bounds_arrive(driver):
    topic = await driver.topic()
    await driver.append(
        topic, [b"a", None, b"c"], keys=[b"k", b"l", None], headers=(("h", b"1"), ("i", b"2"))
    )
    collector = Collector(driver, topic)
    async with running(collector.app):
        await collector.until(lambda: collector.events)
    (batch,) = collector.batches
    assert (batch.topic, batch.partition) == (topic, 0)
    assert batch.keys == [b"k", b"l", None]
    assert batch.values == [b"a", None, b"c"]
    assert batch.headers == {0: (("h", b"1"), ("i", b"2"))}
    assert (batch.first_offset, batch.last_offset, batch.highwater) == (0, 2, 3)
    message = collector.events[0].message
    assert message.offset == 2
    assert message.timestamp == batch.timestamps_ms[-1] / 1000


async def test_a_restarted_worker_goes_on_at_the_commit(driver):
    topic = await driver.topic()
    for n in range(3):
        await driver.append(topic, numbered(n * 10, 10))
    driver.settings = driver.settings.model_copy(update={"batch_records": 10})
    first = Collector(driver, topic)
    async with running(first.app):
        await first.until(lambda: len(first.events) == 3)
    await driver.append(topic, numbered(30, 10))
    second = Collector(driver, topic, app_id=first.app.conf.id)
    async with running(second.app):
        await second.until(lambda: second.events)
    assert second.offsets() == list(range(30, 40))


async def test_hooks_flush_before_the_streams_are_waited_for(driver):
    """A sink holds its events until it has committed: without the hook the wait would not end."""
    topic = await driver.topic(partitions=2)
    for n in range(2):
        await driver.append(topic, numbered(0, 10), partition=n)
    sink = Collector(driver, topic, partitions=2, hold=True)
    leaving = []

    async def flush(tps):
        leaving.append(tps)
        while sink.events:
            sink.events.pop().ack()

    registry(sink.app).before_revoke.append(flush)
    async with running(sink.app):
        await sink.until(lambda: len(sink.events) == 2)
    assert leaving[0] == {TP(topic, 0), TP(topic, 1)}
    await driver.append(topic, [b"next"])
    after = Collector(driver, topic, partitions=2, app_id=sink.app.conf.id)
    async with running(after.app):
        await after.until(lambda: after.events)
        assert after.values == [b"next"]


async def test_a_stream_that_never_acknowledges_holds_up_no_stop(driver):
    """Its events are delivered again; waiting for ever would hold up the whole group."""
    topic = await driver.topic()
    await driver.append(topic, numbered(0, 100))
    one = Collector(driver, topic, hold=True)
    registry(one.app).handover_s = lambda: 0.05
    with capture_logs() as said:
        async with running(one.app):
            await one.until(lambda: one.events)
    assert "streams_not_waited_for" in {line["event"] for line in said}
    two = Collector(driver, topic, app_id=one.app.conf.id)
    async with running(two.app):
        await two.until(lambda: two.values == numbered(0, 100))


@pytest.mark.parametrize("driver", ["kafka"], indirect=True)  # one worker has no rebalance
async def test_a_hook_that_raises_crashes_the_worker(driver):
    topic = await driver.topic(partitions=2)

    async def flush(tps):
        raise LogError("the lake is gone")

    one = Collector(driver, topic, partitions=2)
    async with running(one.app):
        await one.until(one.app.consumer.assignment)
        registry(one.app).before_revoke.append(flush)
        two = Collector(driver, topic, partitions=2, app_id=one.app.conf.id)
        async with running(two.app):
            with pytest.raises(LogError, match="the lake is gone"):
                await one.until(lambda: False)
        registry(one.app).before_revoke.clear()


def resolved(app, topic, positions):
    """Register fixed start positions; returns what was asked."""
    asked = []

    async def resolver(tps):
        asked.append(tps)
        return positions

    registry(app).positions.register(topic, resolver)
    return asked


async def test_a_consumer_of_state_starts_at_its_own_position(driver):
    topic = await driver.topic(partitions=3)
    for n in range(3):
        await driver.append(topic, numbered(0, 100), partition=n)
    collector = Collector(driver, topic, partitions=3)
    asked = resolved(collector.app, topic, {TP(topic, 0): 37, TP(topic, 1): 100})
    async with running(collector.app):
        await collector.until(lambda: len(collector.values) == 163)
        assert collector.offsets(0) == list(range(37, 100))
        assert collector.offsets(1) == []
        assert collector.offsets(2) == list(range(100))  # absent: earliest
        assert await collector.committed(0) == 100
    assert asked[0] == {TP(topic, n) for n in range(3)}


async def test_the_own_position_wins_over_the_commit(driver):
    topic = await driver.topic()
    await driver.append(topic, numbered(0, 100))
    first = Collector(driver, topic)
    async with running(first.app):
        await first.until(lambda: len(first.values) == 100)
    second = Collector(driver, topic, app_id=first.app.conf.id)
    resolved(second.app, topic, {TP(topic, 0): 40})
    async with running(second.app):
        await second.until(lambda: second.offsets()[-1:] == [99])
    assert second.offsets() == list(range(40, 100))


async def test_the_commit_never_passes_the_checkpoint(driver):
    topic = await driver.topic()
    await driver.append(topic, numbered(0, 100))
    collector = Collector(driver, topic)
    checkpoint = {}

    async def resolver(tps):
        return {}

    registry(collector.app).positions.register(topic, resolver, commit_ceiling=checkpoint.get)
    async with running(collector.app):
        await collector.until(lambda: len(collector.values) == 100)
        assert await collector.committed() is None
        checkpoint[TP(topic, 0)] = 60
        assert await collector.committed() == 60
        checkpoint[TP(topic, 0)] = 200
        assert await collector.committed() == 100


@pytest.mark.parametrize(("position", "error"), [(3, RetentionGapError), (101, LogError)])
async def test_a_position_the_log_cannot_serve_crashes_the_worker(driver, position, error):
    topic = await driver.topic()
    await driver.append(topic, numbered(0, 100))
    await driver.delete_below(TP(topic, 0), 50)
    collector = Collector(driver, topic)
    resolved(collector.app, topic, {TP(topic, 0): position})
    async with running(collector.app):
        with pytest.raises(error, match=f"offset {position}"):
            await collector.until(lambda: False)
    assert collector.events == []


async def test_a_commit_below_retention_crashes_the_worker(driver):
    topic = await driver.topic()
    await driver.append(topic, numbered(0, 10))
    first = Collector(driver, topic)
    async with running(first.app):
        await first.until(lambda: len(first.values) == 10)
    await driver.append(topic, numbered(10, 90))
    await driver.delete_below(TP(topic, 0), 50)
    second = Collector(driver, topic, app_id=first.app.conf.id)
    async with running(second.app):
        with pytest.raises(RetentionGapError, match="offset 10"):
            await second.until(lambda: False)


async def test_a_new_group_starts_at_the_earliest_record(driver):
    topic = await driver.topic()
    await driver.append(topic, numbered(0, 100))
    await driver.delete_below(TP(topic, 0), 50)
    collector = Collector(driver, topic)
    async with running(collector.app):
        await collector.until(lambda: collector.events)
    assert collector.offsets() == list(range(50, 100))


async def test_a_seek_while_flowing_loses_and_repeats_nothing_but_what_was_asked(driver):
    topic = await driver.topic()
    driver.settings = driver.settings.model_copy(update={"batch_records": 1_000})
    for n in range(20):
        await driver.append(topic, numbered(n * 1_000, 1_000))
    collector = Collector(driver, topic)
    tp = TP(topic, 0)
    async with running(collector.app):
        for seeks in range(1, 6):
            await collector.until(lambda: len(collector.events) >= 3)
            await collector.app.consumer.seek(tp, 500)
            await collector.until(lambda n=seeks: collector.offsets().count(500) == n + 1)
        await collector.until(lambda: collector.offsets()[-1] == 19_999)
        again = collector.offsets()
        again = again[len(again) - again[::-1].index(500) - 1 :]
        assert again == list(range(500, 20_000))
        assert await collector.committed() == 20_000
        await collector.app.consumer.seek(tp, 20_000)
        await driver.append(topic, [b"new"])
        await collector.until(lambda: collector.values[-1] == b"new")
        assert await collector.committed() == 20_001


async def test_a_fetch_under_way_during_a_seek_is_not_delivered(driver):
    topic = await driver.topic()
    await driver.append(topic, numbered(0, 1_000))
    collector = Collector(driver, topic)
    gate, fetched = asyncio.Event(), []
    gate.set()
    async with running(collector.app):
        consumer = collector.app.consumer
        getmany = consumer._getmany

        async def late(**asked):
            found = await getmany(**asked)
            fetched.extend(found)
            await gate.wait()
            return found

        consumer._getmany = late
        await collector.until(lambda: len(collector.values) == 1_000)
        gate.clear()
        fetched.clear()
        await driver.append(topic, numbered(1_000, 1_000))
        await collector.until(lambda: fetched)
        await consumer.seek(TP(topic, 0), 500)
        gate.set()
        await collector.until(lambda: len(collector.values) >= 2_500)
        assert collector.offsets() == [*range(1_000), *range(500, 2_000)]
        assert await collector.committed() == 2_000


async def test_a_seek_during_a_delivery_redelivers(driver):
    topic = await driver.topic()
    driver.settings = driver.settings.model_copy(update={"batch_records": 1_000})
    for n in range(2):
        await driver.append(topic, numbered(n * 1_000, 1_000))
    collector = Collector(driver, topic)
    gate = asyncio.Event()
    deliver = collector.app.consumer.callback

    async def slowly(message):
        await deliver(message)
        if message.offset == 1_999:
            await gate.wait()

    collector.app.consumer.callback = slowly
    async with running(collector.app):
        await collector.until(lambda: len(collector.values) == 2_000)
        await collector.app.consumer.seek(TP(topic, 0), 500)
        gate.set()
        await collector.until(lambda: len(collector.values) == 3_500)
        assert collector.offsets() == [*range(2_000), *range(500, 2_000)]
        assert await collector.committed() == 2_000


async def test_pausing_and_resuming_loses_nothing(driver):
    topic = await driver.topic(partitions=2)
    driver.settings = driver.settings.model_copy(update={"batch_records": 100})
    for n in range(100):
        await driver.append(topic, numbered(n * 50, 100), partition=n % 2)
    collector = Collector(driver, topic, partitions=2)
    async with running(collector.app):
        consumer = collector.app.consumer
        for n in range(1, 20):
            await collector.until(lambda n=n: len(collector.events) >= n * 5)
            consumer.pause_partitions({TP(topic, n % 2)})
            await collector.until(lambda: True)
            consumer.resume_partitions({TP(topic, n % 2)})
        await collector.until(lambda: len(collector.values) == 10_000)
        assert collector.offsets(0) == list(range(5_000))
        assert collector.offsets(1) == list(range(5_000))
        assert [await collector.committed(n) for n in range(2)] == [5_000, 5_000]


async def test_a_slow_agent_does_not_stop_the_others(driver):
    """A full buffer holds back its own topic; the fetch loop must go on for control topics."""
    slow_topic, fast_topic = await driver.topic(partitions=2), await driver.topic()
    driver.settings = driver.settings.model_copy(update={"batch_records": 1})
    app = driver.app(stream_buffer_maxsize=8)
    gate, taken = asyncio.Event(), []

    @app.agent(batch_topic(app, slow_topic, partitions=2), name="slow")
    async def slow(stream):
        async for batch in stream:
            await gate.wait()
            taken.extend((batch.partition, offset) for offset in batch.offsets.tolist())

    fast = Collector(driver, fast_topic, app=app)
    async with running(app):
        for n in range(100):
            await driver.append(slow_topic, [b"x"], partition=n % 2)
        for n in range(50):
            await driver.append(fast_topic, [b"y"])
            await fast.until(lambda n=n: len(fast.values) == n + 1)
        gate.set()
        await fast.until(lambda: len(taken) == 100)
        assert sorted(taken) == [(n, k) for n in range(2) for k in range(50)]


async def test_other_topics_stay_per_message_and_tables_recover(driver):
    """The checkpoint lives in a table: positions are asked for once it is back."""
    topic = await driver.topic()
    plain = await driver.topic(partitions=4)
    await driver.append(topic, numbered(0, 100))

    def build(app_id):
        app = driver.app(app_id)
        table = app.Table("checkpoints", partitions=4)
        collector = Collector(driver, topic, app=app)

        async def resolver(tps):
            return {TP(topic, 0): table.get("at", 0)}

        registry(app).positions.register(topic, resolver)

        @app.agent(app.topic(plain, value_type=bytes, internal=True), name="plain")
        async def note(stream):
            async for value in stream:
                table["at"] = int(value)

        return app, table, collector

    app, table, collector = build(None)
    async with running(app):
        await collector.until(lambda: len(collector.values) == 100)
        await app.topic(plain, value_type=bytes, internal=True).send(value=b"64", partition=1)
        await collector.until(lambda: table.get("at") == 64)
    app, table, collector = build(app.conf.id)
    async with running(app):
        await collector.until(lambda: collector.events)
        assert table["at"] == 64
    assert collector.offsets() == list(range(64, 100))
