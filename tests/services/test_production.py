"""The production shape by configuration alone: Kafka by SASL_SSL, registry, REST catalog, S3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from k2.dev.catalog import Catalog
from k2.dev.registry import Registry
from k2.dev.s3 import S3
from k2.dev.stack import variables
from k2.errors import LogError
from k2.lake.catalog import open_catalog
from k2.settings import load_settings
from k2.testing.kafka import KafkaServer, running_kafka
from k2.transport.admin import TopicSpec
from k2.transport.kafka_admin import KafkaAdmin
from tests.data import BTC_0808, BTC_0809, FIRST_TRADE, LAST_TRADE, QUOTES, TRADES, require
from tests.e2e.harness import Stack
from tests.services.lakes import empty
from tests.services.require import require_services

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def secure_kafka() -> Iterator[KafkaServer]:
    """A broker that lets in who knows the password, and shows a certificate of our own."""
    require_services("kafka")
    with running_kafka(secure=True) as server:
        yield server


async def test_both_captures_land_once_on_real_services(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    secure_kafka: KafkaServer,
    registry_server: Registry,
    s3_server: S3,
    rest_catalog: Catalog,
) -> None:
    require(BTC_0808, BTC_0809)
    services = {
        "kafka": secure_kafka.service,
        "registry": registry_server,
        "s3": s3_server,
        "catalog": rest_catalog,
    }
    environment = variables(services)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    try:
        async with Stack(tmp_path, environment) as stack:
            captures = ("--capture", str(BTC_0808), "--capture", str(BTC_0809))
            await stack.start_exchange("serve", *captures, "--speed", "max")
            await stack.start_worker()
            await stack.until("all is sent", lambda s: s["source"]["trades"] >= TRADES, 120)
            await stack.until("drained", lambda s: s["drained"], 120)
            counts = "select count(*) n, count(distinct trade_id) ids from trades"
            assert await stack.sql(counts) == [{"n": TRADES, "ids": TRADES}]
            assert await stack.stop_worker() == 0
        catalog = open_catalog(settings)
        rows = catalog.load_table("market_data.trades").scan(selected_fields=("trade_id",))
        ids = sorted(int(one) for one in rows.to_arrow()["trade_id"].to_pylist())
        assert ids == list(range(FIRST_TRADE, LAST_TRADE + 1))
        assert catalog.load_table("market_data.quotes").scan().count() == QUOTES
        catalog.close()
        assert not (tmp_path / "data" / "log").exists()
        assert not (tmp_path / "data" / "warehouse").exists()
        secrets = {
            settings.kafka.sasl_password.get_secret_value(),
            settings.iceberg.s3_secret_key.get_secret_value(),
        }
        log = stack.log_file.read_text()
        assert not [secret for secret in secrets if secret in log]
    finally:
        empty(settings, s3_server)


async def test_a_wrong_password_is_told_within_seconds(
    secure_kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in secure_kafka.service.variables().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("K2_KAFKA_SASL_PASSWORD_FILE")
    monkeypatch.setenv("K2_KAFKA_SASL_PASSWORD", "not-the-password")
    admin = KafkaAdmin(secure_kafka.bootstrap, load_settings().kafka)
    with pytest.raises(LogError, match=r"Authentication failed.*K2_KAFKA_SASL_PASSWORD") as caught:
        await admin.ensure_topics([TopicSpec("t", 1)])
    assert "not-the-password" not in caught.value.message
    await admin.close()


async def test_a_broker_of_another_authority_is_refused(
    secure_kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in secure_kafka.service.variables().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("K2_KAFKA_SSL_CA_FILE", str(secure_kafka.service.certificates.client))
    admin = KafkaAdmin(secure_kafka.bootstrap, load_settings().kafka)
    with pytest.raises(LogError, match=r"certificate verify failed.*K2_KAFKA_SSL_CA_FILE"):
        await admin.ensure_topics([TopicSpec("t", 1)])
    await admin.close()
