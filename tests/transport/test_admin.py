"""Topics, epochs and bounds, on every driver."""

import uuid

import pytest
from faust.types import TP

from k2.errors import ConfigError, LogError
from k2.transport.admin import LogAdmin, TopicSpec


async def admin_of(driver):
    transport = (await driver.writer()).transport
    assert isinstance(transport, LogAdmin)
    return transport


async def test_topics_are_made_once_and_found_again(driver):
    admin = await admin_of(driver)
    name = f"t-{uuid.uuid4().hex}"
    specs = [TopicSpec(name, 5), TopicSpec(f"{name}-c", 1, compacted=True, retention_s=60)]
    await admin.ensure_topics(specs)
    epochs = await admin.epochs([name, f"{name}-c"])
    await admin.ensure_topics(specs)
    assert await admin.epochs([name, f"{name}-c"]) == epochs
    assert len(set(epochs.values())) == 2
    assert all(str(uuid.UUID(epoch)) == epoch for epoch in epochs.values())
    assert await admin.bounds([TP(name, 4)]) == {TP(name, 4): (0, 0)}


async def test_a_topic_with_other_partitions_is_an_error_and_stays(driver):
    admin = await admin_of(driver)
    name = await driver.topic(partitions=3)
    with pytest.raises(ConfigError, match=f"'{name}' has 3 partitions, not 4"):
        await admin.ensure_topics([TopicSpec(name, 4)])
    await admin.ensure_topics([TopicSpec(name, 3)])


async def test_bounds_move_with_appends_and_retention(driver):
    admin = await admin_of(driver)
    topic = await driver.topic(partitions=2)
    await driver.append(topic, [b"x"] * 10, partition=1)
    await driver.delete_below(TP(topic, 1), 4)
    tps = [TP(topic, 0), TP(topic, 1)]
    assert await admin.bounds(tps) == {tps[0]: (0, 0), tps[1]: (4, 10)}
    assert await admin.bounds([]) == {}


@pytest.mark.parametrize("tp", [TP("absent", 0), TP("", 9)])
async def test_what_is_not_there_is_named(driver, tp):
    admin = await admin_of(driver)
    tp = TP(tp.topic or await driver.topic(), tp.partition)
    with pytest.raises(LogError, match=tp.topic):
        await admin.bounds([tp])
    with pytest.raises(LogError, match="absent"):
        await admin.epochs(["absent"])
