"""`k2 demo`: the whole platform on this machine, with no server to install."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click

from k2.cli.demo.degradation import degradation
from k2.cli.demo.feed import Options
from k2.cli.demo.run import Demo
from k2.cli.parameters import names_of


def _speed(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    if value is not None and value != "max":
        try:
            positive = 0 < float(value) < float("inf")
        except ValueError:
            positive = False
        if not positive:
            raise click.BadParameter(f"{value!r}; allowed: a positive number or max")
    return value


def _symbols(_context: click.Context, _option: click.Parameter, value: str | None) -> list[str]:
    if value is None:
        return []
    names = names_of(value.upper())
    wrong = [name for name in names if not (name.isascii() and name.isalnum())]
    if wrong or not names:
        raise click.BadParameter(
            f"{value!r}; allowed: letters and digits without separator, comma separated, "
            "e.g. BTCUSDT,ETHUSDT"
        )
    return names


@click.group(invoke_without_command=True)
@click.option(
    "--capture",
    "captures",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Recorded frames to replay; may be given again, played in order.",
)
@click.option("--speed", callback=_speed, help="Replay: times real time, or max; default 1.")
@click.option("--until-drained", is_flag=True, help="Replay: end when all of it is stored.")
@click.option("--by-clock", is_flag=True, help="Replay: play on while nobody listens.")
@click.option(
    "--source",
    type=click.Choice(["auto", "live", "simulator"]),
    default="auto",
    show_default=True,
    help="auto: live Binance if it answers within 3 s, else the simulator; live: Binance or an "
    "error; simulator: made-up trades, no network.",
)
@click.option("--symbols", callback=_symbols, help="Comma separated; default K2_BINANCE_SYMBOLS.")
@click.option(
    "--rate",
    type=click.IntRange(1, 100_000),
    default=200,
    show_default=True,
    help="Simulator: messages per second.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Log, lake and logs; default K2_DATA_DIR, and below it `simulated` for the simulator.",
)
@click.option("--json", "as_json", is_flag=True, help="No screen; end with one JSON object.")
@click.pass_context
def demo(
    ctx: click.Context,
    captures: tuple[Path, ...],
    speed: str | None,
    until_drained: bool,
    by_clock: bool,
    source: str,
    symbols: list[str],
    rate: int,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Run the whole platform here: a log, a worker, and a feed.

    The feed is live Binance if it answers, else the built-in simulator; with --capture it is a
    recording. Simulated trades have a data directory of their own. Ctrl-C stores what was received
    and stops.

    `k2 demo degradation` overloads a K2 of its own and shows that nothing is lost.
    """
    if ctx.invoked_subcommand is not None:
        return
    if not captures:
        for given, name in ((until_drained, "--until-drained"), (by_clock, "--by-clock")):
            if given:
                raise click.UsageError(f"{name} needs --capture: a live feed never ends")
        if speed is not None:
            raise click.UsageError("--speed needs --capture: only a replay has one")
    elif source != "auto":
        raise click.UsageError(f"--source {source} and --capture exclude each other")
    options = Options(
        captures=captures,
        speed=speed or "1",
        until_drained=until_drained,
        by_clock=by_clock,
        data_dir=data_dir,
        as_json=as_json,
        source=source,
        symbols=tuple(symbols),
        rate=rate,
    )
    sys.exit(asyncio.run(Demo(options).run()))


demo.add_command(degradation)
