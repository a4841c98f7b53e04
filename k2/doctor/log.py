"""The log: does it answer, and are its topics as the catalogue wants them?"""

from __future__ import annotations

import asyncio
from pathlib import Path

from k2.catalogue import topic_specs
from k2.doctor.finding import Finding
from k2.errors import LogLockedError
from k2.settings import Settings
from k2.transport.admin import TopicSpec
from k2.transport.kafka_admin import KafkaAdmin
from k2.transport.local.lock import DirectoryLock

_CHECK = "log"
_TOPICS = "topics"


def look_at_log(settings: Settings) -> list[Finding]:
    """The embedded log by its lock, Kafka by asking it. Raises `LogError`."""
    if settings.embedded:
        return [_embedded(settings.core.data_dir / "log")]
    return asyncio.run(_kafka(settings))


def _embedded(directory: Path) -> Finding:
    if not directory.exists():
        return Finding(_CHECK, "ok", f"embedded, not there yet: {directory}")
    lock = DirectoryLock(directory)
    try:
        lock.acquire()
    except LogLockedError as exc:
        return Finding(_CHECK, "ok", f"embedded, in use: {exc.message}")
    lock.release()
    return Finding(_CHECK, "ok", f"embedded, no worker runs: {directory}")


async def _kafka(settings: Settings) -> list[Finding]:
    admin = KafkaAdmin(settings.kafka.bootstrap_servers, settings.kafka)
    try:
        counts = await admin.partitions([spec.name for spec in topic_specs(settings)])
    finally:
        await admin.close()
    found = [Finding(_CHECK, "ok", f"Kafka at {settings.kafka.bootstrap_servers} answers")]
    return found + compare(topic_specs(settings), counts)


def compare(specs: list[TopicSpec], counts: dict[str, int | None]) -> list[Finding]:
    """Topics that are missing or have other partitions than the catalogue; one line if none."""
    missing = [spec.name for spec in specs if counts[spec.name] is None]
    other = [spec for spec in specs if counts[spec.name] not in (None, spec.partitions)]
    findings = [
        Finding(
            _TOPICS,
            "failed",
            f"{spec.name} has {counts[spec.name]} partitions, not {spec.partitions}",
            "K2 never changes partitions, keys would move: set K2_KAFKA_PARTITIONS to what the "
            "topics have, or begin a new generation of topics",
        )
        for spec in other
    ]
    if missing:
        names = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        remedy = "start a worker, which creates them"
        findings.append(
            Finding(_TOPICS, "warning", f"{len(missing)} topics are missing: {names}", remedy)
        )
    return findings or [Finding(_TOPICS, "ok", f"{len(specs)} topics as they should be")]
