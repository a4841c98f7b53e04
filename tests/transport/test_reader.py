"""Readers without group, on every driver."""

import asyncio
import contextlib

import pytest
from faust.types import TP

from k2.errors import LogError, RetentionGapError
from tests.transport.drivers import PATIENCE_S, numbered


@contextlib.asynccontextmanager
async def reading(driver, positions):
    app = await driver.writer()
    reader = app.transport.create_reader()
    await reader.start(positions)
    try:
        yield reader
    finally:
        await reader.stop()


async def collect(reader, count):
    """Batches until `count` records are there."""
    batches = []
    async with asyncio.timeout(PATIENCE_S):
        while sum(map(len, batches)) < count:
            batches += await reader.getmany(1.0)
    return batches


async def test_reads_every_partition_from_its_position(driver):
    topic = await driver.topic(partitions=3)
    for n in range(3):
        for start in (0, 50):
            await driver.append(topic, numbered(start, 50), partition=n)
    positions = {TP(topic, 0): 0, TP(topic, 1): 60, TP(topic, 2): 100}
    async with reading(driver, positions) as reader:
        batches = await collect(reader, 140)
        assert reader.position(TP(topic, 0)) == 100
        assert reader.highwater(TP(topic, 0)) == 100
        assert await reader.getmany(0.05) == []
        await driver.append(topic, [b"new"], partition=2)
        (last,) = await collect(reader, 1)
    by_partition = {
        n: [o for b in batches if b.partition == n for o in b.offsets] for n in range(3)
    }
    assert by_partition == {0: list(range(100)), 1: list(range(60, 100)), 2: []}
    assert (last.values, last.first_offset, last.highwater) == ([b"new"], 100, 101)


async def test_batches_abut_and_stay_within_the_cap(driver):
    topic = await driver.topic()
    driver.settings = driver.settings.model_copy(update={"batch_records": 100})
    for start in range(0, 1_000, 50):
        await driver.append(topic, numbered(start, 50))
    async with reading(driver, {TP(topic, 0): 0}) as reader:
        batches = await collect(reader, 1_000)
    assert [batch.first_offset for batch in batches] == list(range(0, 1_000, 100))
    assert [batch.last_offset for batch in batches] == list(range(99, 1_000, 100))
    assert [value for batch in batches for value in batch.values] == numbered(0, 1_000)


@pytest.mark.parametrize(("position", "error"), [(49, RetentionGapError), (101, LogError)])
async def test_a_position_the_log_cannot_serve_is_refused(driver, position, error):
    topic = await driver.topic()
    await driver.append(topic, numbered(0, 100))
    await driver.delete_below(TP(topic, 0), 50)
    reader = (await driver.writer()).transport.create_reader()
    with pytest.raises(error, match=f"offset {position}"):
        await reader.start({TP(topic, 0): position})
    await reader.stop()


async def test_it_must_be_started(driver):
    reader = (await driver.writer()).transport.create_reader()
    with pytest.raises(LogError, match="not started"):
        await reader.getmany(0.01)
    await reader.stop()
