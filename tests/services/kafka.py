"""The broker the suites share."""

import os
from collections.abc import Iterator

import pytest

from k2.testing.kafka import KafkaServer, missing_tools, running_kafka


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaServer]:
    """A real Kafka for the whole run; tests use topics of their own."""
    reason = missing_tools()
    if reason and os.environ.get("CI", "").lower() not in ("1", "true"):
        pytest.skip(reason)
    with running_kafka() as server:
        yield server
