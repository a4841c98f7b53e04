"""`k2 topics`: the topics of the catalogue, on the cluster, as they should be, and made anew."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import click

from k2.catalogue import topic_specs
from k2.cli.query import asks, which_client
from k2.client.client import Table
from k2.errors import ConfigError, LogError
from k2.pipeline.numbering import POLICIES
from k2.settings import Settings, load_settings
from k2.topics import MarketTopic, is_tape, parse
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


@topics.command(short_help="A lost log of record, made anew from the lake.")
@click.argument("topic")
@click.option("--from", "start", required=True, help="First moment (ISO 8601).")
@click.option("--to", "end", required=True, help="First moment after.")
@click.option("--as-of", help="The lake as it was at this time.")
@asks
@_JSON
def refill(
    topic: str,
    start: str,
    end: str,
    as_of: str | None,
    url: str | None,
    key: str | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Fill the empty log of record TOPIC (`market.crypto.trades.binance`) from the lake.

    The log is the configured one (K2_KAFKA_BOOTSTRAP_SERVERS, else K2_DATA_DIR). Records come in
    the order of their exchange times. Workers on the same lake store none of them twice.
    """
    from k2.replay.refill import refill as fill  # noqa: PLC0415 - the help needs none of it

    settings = load_settings()
    market = _market(settings, topic)
    began_s = time.monotonic()

    def progress(sent: int) -> None:
        click.echo(f"{market.log}: {sent:,} records", err=True)

    async def run() -> int:
        async with which_client(url, key, data_dir) as client:
            table = cast("Table", market.data_type)
            rows = client.replay(table, start, end, exchange=market.exchange.upper(), as_of=as_of)
            return await fill(settings, market, rows, progress)

    sent = asyncio.run(run())
    seconds = time.monotonic() - began_s
    if as_json:
        print(json.dumps({"topic": market.log, "records": sent, "seconds": round(seconds, 1)}))
    else:
        print(f"{market.log}: {sent:,} records of the lake in {seconds:.1f} s")


def _market(settings: Settings, name: str) -> MarketTopic:
    market, suffix = parse(name)
    if suffix is not None or market.data_type not in ("trades", "quotes"):
        raise ConfigError(
            f"topic {name!r} is no log of record of trades or quotes; the lake makes no other "
            "topic anew",
            topic=name,
        )
    if (market.exchange, market.data_type) not in POLICIES and not is_tape(market):
        raise ConfigError(
            f"the records of {name!r} have no ids of their own, so a worker would store each "
            "again; keep this topic's log longer, or back it up with Kafka's own means",
            topic=name,
        )
    if market not in settings.topics:
        known = ", ".join(one.log for one in settings.topics)
        raise ConfigError(
            f"topic {name!r} is not in the catalogue, which K2_EXCHANGES makes: {known}",
            topic=name,
        )
    return market


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
