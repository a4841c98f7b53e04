"""A broker that came back is asked as if nothing had been."""

from __future__ import annotations

import os

import pytest
from faust.types import TP

from k2.settings import Kafka
from k2.testing.kafka import missing_tools, running_kafka
from k2.transport.admin import TopicSpec
from k2.transport.kafka_admin import KafkaAdmin

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]


async def test_offsets_are_known_after_a_broker_restarted() -> None:
    reason = missing_tools()
    if reason and not os.environ.get("CI"):
        pytest.skip(reason)
    with running_kafka() as server:
        settings = Kafka.model_construct(bootstrap_servers=server.bootstrap)
        admin = KafkaAdmin(server.bootstrap, settings)
        await admin.ensure_topics([TopicSpec("restarted", 4)])
        partitions = [TP("restarted", number) for number in range(4)]
        before = await admin.bounds(partitions)
        server.stop()
        server.start()
        assert await admin.bounds(partitions) == before
        await admin.close()
