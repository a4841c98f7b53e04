"""What comes with one fetch is in one company, on the real thing."""

from tests.transport.drivers import Collector, numbered, running


async def test_small_batches_of_a_fetch_are_worked_on_together(driver):
    topic = await driver.topic(partitions=4)
    for partition in range(4):
        await driver.append(topic, numbered(10 * partition, 3), partition=partition)
    collector = Collector(driver, topic, partitions=4)
    async with running(collector.app):
        await collector.until(lambda: len(collector.batches) == 4)
        assert sorted(collector.values) == sorted(v for n in range(4) for v in numbered(10 * n, 3))
        assert all(batch.company is not None for batch in collector.batches)
        # A broker may answer for some partitions before others, but not for each by itself.
        assert len({id(batch.company) for batch in collector.batches}) < 4
        for batch in collector.batches:
            shared = batch.company.share(batch, list, list)
            if shared is not None:
                values, start = shared
                assert values[start : start + 3] == batch.values
