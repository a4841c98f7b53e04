"""`k2 topics` on a real cluster: made, compared, mended, and never given other partitions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress

import pytest
from click.testing import CliRunner, Result
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from k2.catalogue import topic_specs
from k2.cli.topics import topics
from k2.errors import LogError
from k2.settings import load_settings
from k2.testing.kafka import KafkaServer
from k2.topics import BINANCE_TRADES
from k2.transport.kafka_admin import KafkaAdmin

pytestmark = pytest.mark.kafka


@pytest.fixture
def cluster(kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[KafkaServer]:
    """The shared broker without K2's topics, which other tests may have left; also afterwards."""
    monkeypatch.setenv("K2_KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap)
    monkeypatch.setenv("K2_KAFKA_PARTITIONS", "2")
    monkeypatch.setenv("K2_APP_ID", "topics-test")
    delete_topics(kafka)
    yield kafka
    delete_topics(kafka)


def delete_topics(kafka: KafkaServer) -> None:
    """Delete what there is of the catalogue, and wait until the broker lists none of it."""
    wanted = {spec.name for spec in topic_specs(load_settings())}
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    while found := sorted(wanted & admin.list_topics(timeout=10).topics.keys()):
        for future in admin.delete_topics(found).values():
            # Deleted by the round before; the listing is a moment behind.
            with suppress(KafkaException):
                future.result(10)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(topics, arguments)


def diff_until(status: int) -> Result:
    """The brokers learn of a change a moment after it was accepted."""
    for _ in range(100):
        done = run("diff")
        if done.exit_code == status:
            break
    return done


def configure(changes: dict[str, dict[str, str]]) -> None:
    async def put() -> None:
        settings = load_settings().kafka
        admin = KafkaAdmin(settings.bootstrap_servers, settings)
        await admin.configure(changes)
        await admin.close()

    asyncio.run(put())


def test_apply_makes_and_mends_what_diff_shows(cluster: KafkaServer) -> None:
    wanted = {spec.name for spec in topic_specs(load_settings())}
    missing = json.loads(run("diff", "--json").stdout)["differences"]
    assert {one["topic"] for one in missing} == wanted
    assert run("apply").exit_code == 0
    same = run("diff", "--json")
    assert same.exit_code == 0
    assert json.loads(same.stdout) == {"differences": []}
    configure({BINANCE_TRADES.log: {"retention.ms": "1000", "cleanup.policy": "compact"}})
    drifted = diff_until(1)
    assert f"{BINANCE_TRADES.log}: retention.ms is 1000, wanted 7776000000" in drifted.stdout
    assert f"{BINANCE_TRADES.log}: cleanup.policy is compact, wanted delete" in drifted.stdout
    assert "2 changes" in run("apply").stdout
    assert diff_until(0).exit_code == 0


def test_other_partitions_are_told_and_never_made(
    cluster: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("apply").exit_code == 0
    monkeypatch.setenv("K2_KAFKA_PARTITIONS", "3")
    drifted = run("diff", "--json")
    assert drifted.exit_code == 1
    found = json.loads(drifted.stdout)["differences"]
    assert {(one["what"], one["wanted"], one["found"]) for one in found} == {
        ("partitions", "3", "2")
    }
    refused = run("apply")
    assert isinstance(refused.exception, LogError)
    assert "nothing was changed" in refused.exception.message


def test_list_needs_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("K2_KAFKA_BOOTSTRAP_SERVERS", raising=False)
    rows = {row["topic"]: row for row in json.loads(run("list", "--json").stdout)["topics"]}
    assert rows[BINANCE_TRADES.log] == {
        "topic": BINANCE_TRADES.log,
        "partitions": 1,
        "cleanup": "delete",
        "retention_ms": 90 * 86_400_000,
        "compression": "lz4",
    }
    assert rows["k2-continuity-changelog"]["cleanup"] == "compact"
    assert "90 days" in run("list").stdout
