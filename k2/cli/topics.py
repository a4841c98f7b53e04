"""`k2 topics`: the topics of the catalogue, on the cluster and as they should be."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import click

from k2.catalogue import topic_specs
from k2.errors import ConfigError, LogError
from k2.settings import Settings, load_settings
from k2.transport.admin import TopicSpec
from k2.transport.kafka_admin import KafkaAdmin
from k2.transport.topic_state import Difference, differences, topic_config

_DAY_MS = 86_400_000
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")


@click.group()
def topics() -> None:
    """The topics K2 needs: list them, make them, compare them with the cluster."""


@topics.command(name="list")
@_JSON
def list_(as_json: bool) -> None:
    """Print every topic of the catalogue; needs no cluster."""
    settings = load_settings()
    rows = [_row(spec, settings) for spec in topic_specs(settings)]
    if as_json:
        print(json.dumps({"topics": rows}))
        return
    width = max(len(str(row["topic"])) for row in rows)
    for row in rows:
        print(
            f"{row['topic']:<{width}}  {row['partitions']:>4} partitions  {row['cleanup']:<7}  "
            f"{_days(str(row['retention_ms'])):<8}  {row['compression']}"
        )


def _row(spec: TopicSpec, settings: Settings) -> dict[str, object]:
    config = topic_config(spec, settings.kafka)
    return {
        "topic": spec.name,
        "partitions": spec.partitions,
        "cleanup": config["cleanup.policy"],
        "retention_ms": int(config["retention.ms"]),
        "compression": settings.kafka.compression,
    }


def _days(milliseconds: str) -> str:
    return "for ever" if milliseconds == "-1" else f"{int(milliseconds) / _DAY_MS:g} days"


@topics.command()
@_JSON
def diff(as_json: bool) -> None:
    """Print where the cluster's topics differ from the catalogue; status 1 when any does."""
    settings = _with_kafka()
    found = asyncio.run(_compare(settings))
    if as_json:
        print(json.dumps({"differences": [_as_json(one) for one in found]}))
    else:
        _print(found)
    if found:
        raise SystemExit(1)


def _as_json(one: Difference) -> dict[str, object]:
    return {"topic": one.topic, "what": one.what, "wanted": one.wanted, "found": one.found}


def _print(found: Sequence[Difference]) -> None:
    for one in found:
        is_now = "missing" if one.found is None else f"{one.what} is {one.found or '(unset)'}"
        print(f"{one.topic}: {is_now}, wanted {one.wanted}")
    print(f"{len(found)} differences" if found else "all topics are as the catalogue has them")


@topics.command()
@_JSON
def apply(as_json: bool) -> None:
    """Make missing topics and set what differs; partitions are never changed, that is an error."""
    settings = _with_kafka()
    done = asyncio.run(_apply(settings))
    if as_json:
        print(json.dumps({"applied": [_as_json(one) for one in done]}))
        return
    for one in done:
        how = "made" if one.found is None else f"{one.what} {one.found or '(unset)'} ->"
        print(f"{one.topic}: {how} {one.wanted}")
    print(f"{len(done)} changes" if done else "nothing to do")


def _with_kafka() -> Settings:
    settings = load_settings()
    if settings.embedded:
        raise ConfigError(
            "K2_KAFKA_BOOTSTRAP_SERVERS is empty: the embedded log makes its topics by itself; set "
            "it to compare a cluster's",
            variable="K2_KAFKA_BOOTSTRAP_SERVERS",
        )
    return settings


def _admin(settings: Settings) -> KafkaAdmin:
    return KafkaAdmin(settings.kafka.bootstrap_servers, settings.kafka)


async def _compare(settings: Settings) -> list[Difference]:
    admin, specs = _admin(settings), topic_specs(settings)
    try:
        states = await admin.states([spec.name for spec in specs])
    finally:
        await admin.close()
    return [one for spec in specs for one in differences(spec, states[spec.name], settings.kafka)]


async def _apply(settings: Settings) -> list[Difference]:
    found = await _compare(settings)
    fixed = [one for one in found if not one.repairable]
    if fixed:
        raise LogError(
            f"topic {fixed[0].topic!r} has {fixed[0].found} partitions, not {fixed[0].wanted}; "
            f"partition counts never change, since keys would move. Set K2_KAFKA_PARTITIONS to "
            f"{fixed[0].found}, or copy the topic into a new one; nothing was changed",
            topic=fixed[0].topic,
        )
    admin, specs = _admin(settings), topic_specs(settings)
    try:
        await admin.ensure_topics(specs)
        changes: dict[str, dict[str, str]] = {}
        for one in found:
            if one.found is not None:
                changes.setdefault(one.topic, {})[one.what] = one.wanted
        await admin.configure(changes)
    finally:
        await admin.close()
    return found
