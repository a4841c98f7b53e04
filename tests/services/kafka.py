"""The broker the suites share."""

from collections.abc import Iterator

import pytest

from k2.testing.kafka import KafkaServer, running_kafka
from tests.services.require import require_services


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaServer]:
    """A real Kafka for the whole run; tests use topics of their own."""
    require_services("kafka")
    with running_kafka() as server:
        yield server
