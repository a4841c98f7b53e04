"""`k2 replay`: stored records again, in order."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import BinaryIO

import click

from k2.cli.query import asks, split, which_client
from k2.client import K2Client, Rows
from k2.client.client import Table
from k2.clock import SYSTEM_CLOCK
from k2.errors import ConfigError
from k2.replay.frames import capture_line
from k2.replay.pace import Pace, speed_of
from k2.replay.records import merged, records
from k2.replay.targets import KafkaTarget, Lines, Target, json_line
from k2.settings import load_settings

Ask = Callable[[K2Client, Table], AsyncIterator[Rows]]
_TABLES: dict[str, tuple[Table, ...]] = {
    "trades": ("trades",),
    "quotes": ("quotes",),
    "both": ("trades", "quotes"),
}


@click.command()
@click.option("--symbols", help="Comma separated; all when left out.")
@click.option("--exchange")
@click.option("--from", "start", required=True, help="First moment (ISO 8601).")
@click.option("--to", "end", required=True, help="First moment after.")
@click.option("--data-type", type=click.Choice(list(_TABLES)), default="trades", show_default=True)
@click.option("--speed", default="max", show_default=True, help="A multiple of real time, or max.")
@click.option("--as-of", help="The lake as it was at this time: the same again, whatever comes.")
@click.option("--snapshot-id", help="The lake at this snapshot (of one data type).")
@click.option(
    "--as",
    "shape",
    type=click.Choice(["json", "capture"]),
    default="json",
    show_default=True,
    help="JSON lines, or frames for `k2 exchange serve --capture`.",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A file.")
@click.option("--topic", help="A Kafka topic instead; it must be there.")
@click.option("--kafka", "servers", help="host:port; default: K2_KAFKA_BOOTSTRAP_SERVERS.")
@asks
def replay(
    symbols: str | None,
    exchange: str | None,
    start: str,
    end: str,
    data_type: str,
    speed: str,
    as_of: str | None,
    snapshot_id: str | None,
    shape: str,
    output: Path | None,
    topic: str | None,
    servers: str | None,
    url: str | None,
    key: str | None,
    data_dir: Path | None,
) -> None:
    """Send stored records again in the order of their exchange times.

    To standard output as JSON lines, to a Kafka topic (--topic), or as a capture that
    `k2 exchange serve` plays in the exchange's own protocol (--as capture). One snapshot is read,
    whatever is stored meanwhile; which one is told on standard error.
    """
    if snapshot_id is not None and data_type == "both":
        raise ConfigError("--snapshot-id names a snapshot of one table: give --as-of for both")
    pace = Pace(speed_of(speed), SYSTEM_CLOCK)

    def ask(client: K2Client, table: Table) -> AsyncIterator[Rows]:
        return client.replay(
            table,
            start,
            end,
            symbols=split(symbols),
            exchange=exchange,
            snapshot_id=snapshot_id,
            as_of=as_of,
        )

    with contextlib.ExitStack() as stack:
        target = _target(stack, shape, output, topic, servers, hold=pace.speed is None)
        client = which_client(url, key, data_dir)
        sent = asyncio.run(_replay(client, _TABLES[data_type], ask, pace, target))
    click.echo(f"k2: {sent:,} records", err=True)


async def _replay(
    client: AbstractAsyncContextManager[K2Client],
    tables: tuple[Table, ...],
    ask: Ask,
    pace: Pace,
    target: Target,
) -> int:
    sent = 0
    async with client as opened:
        sources = [
            records(table.removesuffix("s"), _told(table, ask(opened, table))) for table in tables
        ]
        try:
            async for record in pace.keep(merged(sources)):
                await target.take(record)
                sent += 1
        finally:
            await target.finish()
    return sent


async def _told(table: Table, batches: AsyncIterator[Rows]) -> AsyncIterator[Rows]:
    """The batches; says once which snapshot they are of."""
    said = False
    async for batch in batches:
        if not said:
            said = True
            click.echo(f"k2: {table} of snapshot {batch.as_of[table]['snapshot_id']}", err=True)
        yield batch


def _target(
    stack: contextlib.ExitStack,
    shape: str,
    output: Path | None,
    topic: str | None,
    servers: str | None,
    *,
    hold: bool,
) -> Target:
    if topic is not None:
        if output is not None or shape != "json":
            raise ConfigError("--topic takes JSON records: leave --output and --as out")
        kafka = load_settings().kafka
        address = servers or kafka.bootstrap_servers
        if not address:
            raise ConfigError(
                "--topic needs a Kafka: give --kafka host:port, or set K2_KAFKA_BOOTSTRAP_SERVERS",
                variable="K2_KAFKA_BOOTSTRAP_SERVERS",
            )
        return KafkaTarget(kafka, address, topic)
    out: BinaryIO = sys.stdout.buffer if output is None else stack.enter_context(output.open("wb"))
    return Lines(out, json_line if shape == "json" else capture_line, hold=hold)
