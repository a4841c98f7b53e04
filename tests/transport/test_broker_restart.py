"""Brokers that go and come back are asked as if nothing had been."""

from __future__ import annotations

from pathlib import Path

import pytest
from faust.types import TP

from k2.chaos.brokers import Brokers
from k2.settings import Kafka
from k2.testing.kafka import running_kafka
from k2.transport.admin import TopicSpec
from k2.transport.kafka_admin import KafkaAdmin
from tests.services.require import require_services

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]
PARTITIONS = [TP("restarted", number) for number in range(4)]


async def test_offsets_are_known_after_a_broker_restarted() -> None:
    require_services("kafka")
    with running_kafka() as server:
        settings = Kafka.model_construct(bootstrap_servers=server.bootstrap)
        admin = KafkaAdmin(server.bootstrap, settings)
        await admin.ensure_topics([TopicSpec("restarted", 4)])
        before = await admin.bounds(PARTITIONS)
        server.stop()
        server.start()
        assert await admin.bounds(PARTITIONS) == before
        await admin.close()


@pytest.mark.heavy
async def test_offsets_are_known_while_one_broker_of_three_is_away(tmp_path: Path) -> None:
    require_services("kafka")
    brokers = Brokers(tmp_path, 3)
    try:
        await brokers.start()
        settings = Kafka.model_construct(bootstrap_servers=brokers.bootstrap, replication=3)
        admin = KafkaAdmin(brokers.bootstrap, settings)
        await admin.ensure_topics([TopicSpec("restarted", 4)])
        before = await admin.bounds(PARTITIONS)
        for node in brokers.nodes:
            node.kill()
            assert [await admin.bounds(PARTITIONS) for _ in range(20)] == [before] * 20
            node.spawn()
            await node.until_healthy()
        await admin.close()
    finally:
        brokers.kill()
