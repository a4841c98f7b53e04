"""Every look tells what is wrong, where, and what to do; and finds nothing where all is well."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from k2.catalogue import topic_specs
from k2.cli.doctor import looks
from k2.doctor.finding import Finding, run
from k2.doctor.log import compare
from k2.doctor.worker import read
from k2.errors import LakeError
from k2.settings import load_settings
from k2.testing.kafka import KafkaServer
from k2.transport.admin import TopicSpec
from k2.transport.kafka_admin import KafkaAdmin
from tests.e2e.harness import Stack

SPECS = [TopicSpec("a", 16), TopicSpec("b", 1)]


def by_check(findings: list[Finding]) -> dict[str, Finding]:
    return {one.check: one for one in findings}


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("K2_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("K2_API_PORT", "9")  # nobody listens there
    return tmp_path / "data"


def test_a_look_that_fails_is_a_finding_and_the_others_go_on() -> None:
    def broken() -> list[Finding]:
        raise LakeError("the catalog is away")

    def well() -> list[Finding]:
        return [Finding("b", "ok", "fine")]

    assert run({"a": (broken, "start it"), "b": (well, "")}) == [
        Finding("a", "failed", "the catalog is away", "start it"),
        Finding("b", "ok", "fine"),
    ]


def test_topics_as_they_should_be_missing_and_other() -> None:
    assert [f.state for f in compare(SPECS, {"a": 16, "b": 1})] == ["ok"]
    (missing,) = compare(SPECS, {"a": 16, "b": None})
    assert (missing.state, missing.detail) == ("warning", "1 topics are missing: b")
    (other,) = compare(SPECS, {"a": 4, "b": 1})
    assert (other.state, other.detail) == ("failed", "a has 4 partitions, not 16")
    assert "K2_KAFKA_PARTITIONS" in other.remedy


def test_a_worker_that_is_not_well_is_told_with_its_reason() -> None:
    health = {
        "dependencies": [{"name": "log", "status": "unhealthy", "message": "no answer for 9 s"}]
    }
    status = {"lag": 7, "degradation": {"name": "SOFT", "reason": "lag 100"}}
    found = by_check(read(health, status))
    assert found["worker: log"].state == "failed"
    assert found["worker: log"].detail == "no answer for 9 s"
    assert found["worker: load"].state == "warning"
    assert found["worker: load"].remedy.startswith("lag 100")


def test_before_the_first_start_nothing_has_failed(empty: Path) -> None:
    found = by_check(run(looks(load_settings())))
    assert {one.state for one in found.values()} <= {"ok", "warning", "skipped"}
    assert found["table trades"].remedy == "start a worker, which creates it"
    assert (found["storage"].state, found["clock"].state) == ("ok", "ok")
    assert found["worker"].state == "skipped"


def test_a_lake_and_registry_that_are_away_are_told_with_the_setting(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("K2_ICEBERG_CATALOG_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("K2_KAFKA_SCHEMA_REGISTRY_URL", "http://127.0.0.1:9")
    found = by_check(run(looks(load_settings())))
    assert found["catalog"].state == "failed"
    assert "K2_ICEBERG_CATALOG_URI" in found["catalog"].remedy
    assert found["schemas"].state == "failed"
    assert "K2_KAFKA_SCHEMA_REGISTRY_URL" in found["schemas"].remedy


@pytest.mark.timeout(120)
async def test_a_running_worker_is_well(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        await stack.start_exchange("simulate", "--symbols", "BTCUSDT", "--rate", "50")
        await stack.start_worker()
        await stack.until("rows", lambda s: s["sink"]["tables"]["trades"]["rows"] > 0)
        status, answer = await doctor(K2_DATA_DIR=str(tmp_path / "data"), K2_API_PORT=stack.port)
        assert await stack.stop_worker() == 0
    found = {one["check"]: one for one in answer["findings"]}
    assert (status, answer["ok"]) == (0, True), answer
    assert {one["state"] for one in found.values()} == {"ok"}
    assert "in use by process" in found["log"]["detail"]
    assert "files" in found["table trades"]["detail"]


@pytest.mark.kafka
async def test_kafka_is_asked_for_its_topics(
    empty: Path, kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("K2_KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap)
    monkeypatch.setenv("K2_APP_ID", f"doctor-{empty.parent.name}")
    settings = load_settings()
    admin = KafkaAdmin(kafka.bootstrap, settings.kafka)
    await admin.ensure_topics(topic_specs(settings))
    await admin.close()
    environment = {"K2_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap}
    environment |= {"K2_APP_ID": settings.core.app_id, "K2_DATA_DIR": str(empty)}
    status, answer = await doctor(**environment)
    assert status == 0
    states = {one["check"]: one["state"] for one in answer["findings"]}
    assert (states["log"], states["topics"]) == ("ok", "ok")
    status, answer = await doctor(**environment, K2_KAFKA_PARTITIONS=4)
    assert (status, answer["ok"]) == (1, False)


async def doctor(**environment: object) -> tuple[int, dict[str, Any]]:
    """`k2 doctor --json` as a process: (exit status, its object)."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "k2.cli", "doctor", "--json"),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, json.loads(out)
