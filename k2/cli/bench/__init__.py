"""`k2 bench`: the figures the documentation gives, measured again."""

from __future__ import annotations

import click

from k2.cli.bench.codec import codec
from k2.cli.bench.flow import pipeline, sink
from k2.cli.bench.freshness import freshness
from k2.cli.bench.start import start
from k2.cli.bench.transport import transport


@click.group()
def bench() -> None:
    """Measure on this machine, with a real Kafka (started here unless one is configured)."""


for _command in (transport, codec, sink, pipeline, freshness, start):
    bench.add_command(_command)
