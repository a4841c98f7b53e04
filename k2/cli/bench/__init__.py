"""`k2 bench`: the figures the documentation gives, measured again."""

from __future__ import annotations

import click

from k2.cli.bench.codec import codec
from k2.cli.bench.commits import commits
from k2.cli.bench.compression import compression
from k2.cli.bench.feeds import feeds
from k2.cli.bench.flow import pipeline, sink
from k2.cli.bench.freshness import freshness
from k2.cli.bench.lake import lake
from k2.cli.bench.overhead import overhead
from k2.cli.bench.overload import overload
from k2.cli.bench.query import query
from k2.cli.bench.scale import scale
from k2.cli.bench.start import start
from k2.cli.bench.transport import transport
from k2.log import configure_structlog


@click.group()
def bench() -> None:
    """Measure speed, freshness and start-up on this machine.

    `transport`, `sink` and `pipeline` run on a real Kafka: the one K2_KAFKA_BOOTSTRAP_SERVERS
    names, else one that is started here for the run (it needs Java and Maven). The others need
    nothing. With --json the last line is one JSON object. docs/benchmarks.md has the figures.
    """
    configure_structlog()  # standard output is the result's


for _command in (
    *(transport, codec, sink, pipeline, scale, freshness, start, lake, commits, compression),
    *(feeds, query, overload, overhead),
):
    bench.add_command(_command)
