"""A real registry stops a worker whose schemas cannot follow what is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from k2.codec.http_registry import HttpRegistry
from k2.dev.process import free_ports
from k2.dev.registry import Registry
from k2.topics import BINANCE_TRADES

SUBJECT = BINANCE_TRADES.subject


@pytest.fixture
def occupied(registry_server: Registry) -> Iterator[str]:
    """The address of a registry where the trades' subject has a schema of somebody else."""
    fields = [{"name": "price", "type": "bytes"}]
    foreign = {"type": "record", "name": "TradeV2", "namespace": "com.k2.marketdata"}
    with SchemaRegistryClient({"url": registry_server.url}) as client:
        with suppress(SchemaRegistryError):
            client.delete_subject(SUBJECT)
        registry = HttpRegistry(registry_server.url)
        registry.register(SUBJECT, json.dumps({**foreign, "fields": fields}))
        registry.close()
        yield registry_server.url
        client.delete_subject(SUBJECT)


def test_an_incompatible_schema_stops_the_worker(occupied: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "faust", "-A", "k2.app", "worker", "-l", "info"],
        env={
            **os.environ,
            "K2_DATA_DIR": str(tmp_path),
            "K2_API_PORT": str(free_ports(1)[0]),
            "K2_KAFKA_SCHEMA_REGISTRY_URL": occupied,
            "K2_BINANCE_ENABLED": "false",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "worker_cannot_start" in line]
    assert len(lines) == 1
    assert SUBJECT in lines[0]
    assert "must be BACKWARD compatible" in lines[0]
    assert "code 409" in lines[0]
