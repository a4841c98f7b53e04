"""`k2 demo`: the whole platform on this machine, with no server to install."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from k2.cli.demo.run import Demo, Options


def _speed(_context: click.Context, _option: click.Parameter, value: str) -> str:
    if value != "max":
        try:
            positive = 0 < float(value) < float("inf")
        except ValueError:
            positive = False
        if not positive:
            raise click.BadParameter(f"{value!r}; allowed: a positive number or max")
    return value


@click.command()
@click.option(
    "--capture",
    "captures",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Recorded frames to replay; may be given again, played in order.",
)
@click.option("--speed", default="1", callback=_speed, help="Replay speed: a number or max.")
@click.option("--until-drained", is_flag=True, help="End when everything delivered is stored.")
@click.option("--by-clock", is_flag=True, help="The replay's clock runs on without a listener.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="As K2_DATA_DIR.")
@click.option("--json", "as_json", is_flag=True, help="No screen; end with one JSON object.")
@click.option("--source", type=click.Choice(["auto", "live", "simulator"]), default="auto")
@click.option("--symbols", default="", help="Symbols, comma separated; default: the setting's.")
@click.option("--rate", default=200, show_default=True, help="Simulator: messages per second.")
def demo(
    captures: tuple[Path, ...],
    speed: str,
    until_drained: bool,
    by_clock: bool,
    data_dir: Path | None,
    as_json: bool,
    source: str,
    symbols: str,
    rate: int,
) -> None:
    """Run embedded log, worker and a feed: live Binance, the simulator, or a replay."""
    if until_drained and not captures:
        raise click.UsageError("--until-drained needs --capture: a live feed never ends")
    options = Options(
        captures=captures,
        speed=speed,
        until_drained=until_drained,
        by_clock=by_clock,
        data_dir=data_dir,
        as_json=as_json,
        source=source,
        symbols=tuple(part.strip().upper() for part in symbols.split(",") if part.strip()),
        rate=rate,
    )
    asyncio.run(Demo(options).run())
