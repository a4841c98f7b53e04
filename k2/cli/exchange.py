"""`k2 exchange`: the exchange server as a process of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from k2.cli.parameters import names_of
from k2.cli.signals import stop_on_signals
from k2.exchange.dialects import DIALECTS, dialect_of
from k2.exchange.feed import CaptureFeed, Feed
from k2.exchange.looping import LoopingFeed
from k2.exchange.server import DEFAULT_SENDS, ExchangeServer
from k2.log import configure
from k2.settings import load_settings

if TYPE_CHECKING:
    from k2.exchange.memory import MarketMemory
    from k2.exchange.simulator import Simulator

#: Seconds between two notes of where a simulated market is.
_REMEMBER_S = 1.0


class Speed(click.ParamType):
    """A multiple of real time, or `max`."""

    name = "N|max"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        """The factor, or None for `max`."""
        if value == "max":
            return None
        try:
            speed = float(str(value))
        except ValueError:
            speed = 0.0
        if not 0 < speed < float("inf"):
            self.fail(f"{value!r} is no speed; give a number above 0, or max", param, ctx)
        return speed


@click.group()
def exchange() -> None:
    """Run an exchange server that speaks an exchange's own market-data protocol.

    A worker talks to it when K2_BINANCE_URL (K2_KRAKEN_URL, K2_COINBASE_URL) is its address
    (ws://127.0.0.1:9443). It prints that address as JSON and serves until Ctrl-C; GET /k2/status
    says what it has sent.
    """
    configure(load_settings())


def _listen(command: click.decorators.FC) -> click.decorators.FC:
    port = click.option(
        "--port", default=9443, show_default=True, help="Port to listen on; 0: a free one."
    )
    host = click.option(
        "--host", default="127.0.0.1", show_default=True, help="Address to listen on."
    )
    sends = click.option(
        "--sends",
        default=DEFAULT_SENDS,
        show_default=True,
        help="Sending times kept for GET /k2/sends.",
    )
    return port(host(sends(command)))


@exchange.command(short_help="Replay recorded captures.")
@click.option(
    "--capture",
    "captures",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="A recorded capture, plain or gzip; several are played in the order given.",
)
@click.option("--speed", type=Speed(), default="1", show_default=True, help="Times real time.")
@click.option("--by-clock", is_flag=True, help="Play once for everybody; who is away misses it.")
@click.option("--loop", is_flag=True, help="For ever, under ids and times that go on rising.")
@click.option("--also", default="", help="With --loop: the same market under more symbols.")
@click.option("--at-once", is_flag=True, help="By the clock: do not wait for a first client.")
@click.option(
    "--exchange",
    "name",
    type=click.Choice(sorted(DIALECTS)),
    help="Whose protocol to speak; default: the one of the captures.",
)
@_listen
def serve(
    captures: tuple[Path, ...],
    speed: float | None,
    by_clock: bool,
    loop: bool,
    also: str,
    at_once: bool,
    name: str | None,
    host: str,
    port: int,
    sends: int,
) -> None:
    """Replay recorded captures; without --by-clock each client gets all of it."""
    names = tuple(names_of(also.upper()))
    if names and not loop:
        raise click.UsageError("--also needs --loop")
    dialect = DIALECTS[name] if name else dialect_of(CaptureFeed(captures))
    if loop and dialect.name != "binance":
        raise click.UsageError(f"--loop knows captures of binance; these are of {dialect.name}")
    feed: Feed = LoopingFeed(captures, names) if loop else CaptureFeed(captures)

    def build() -> ExchangeServer:
        return ExchangeServer(
            feed,
            host,
            port,
            speed=speed,
            mode="by-clock" if by_clock else "per-connection",
            wait_for_client=not at_once,
            sends=sends,
            dialect=dialect,
        )

    asyncio.run(_run(build, f"replay of {', '.join(map(str, captures))}"))


@exchange.command(short_help="Make up a market.")
@click.option("--symbols", default="BTCUSDT,ETHUSDT", show_default=True, help="Comma separated.")
@click.option("--rate", default=1_000.0, show_default=True, help="Frames a second in all.")
@click.option("--seed", default=1, show_default=True, help="The same seed, the same market.")
@click.option("--first-id", default=1, show_default=True, help="First trade id of every symbol.")
@click.option("--frames", type=int, help="Send no more than so many frames; default: no end.")
@click.option("--speed", type=Speed(), default="1", show_default=True, help="Times real time.")
@click.option(
    "--state",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File in which the market is kept: the next run with it goes on, ids and prices.",
)
@click.option(
    "--exchange",
    "name",
    type=click.Choice(["binance", "coinbase"]),
    default="binance",
    show_default=True,
    help="Whose protocol to speak.",
)
@_listen
def simulate(
    symbols: str,
    rate: float,
    seed: int,
    first_id: int,
    frames: int | None,
    speed: float | None,
    state: Path | None,
    name: str,
    host: str,
    port: int,
    sends: int,
) -> None:
    """Make up a market, by the clock, for as many clients as there are."""
    from k2.exchange.memory import MarketMemory  # noqa: PLC0415 - only here
    from k2.exchange.simulator import Simulator, SimulatorConfig  # noqa: PLC0415 - only here
    from k2.exchange.translate import AsCoinbase  # noqa: PLC0415 - only here

    if state is not None and speed is None:
        raise click.UsageError("--state needs a --speed that is a number: ids are set aside by it")
    names = tuple(names_of(symbols.upper()))
    memory = MarketMemory(state, (speed or 1.0)) if state is not None else None
    known = memory.load() if memory is not None else {}
    resume = {name: known[name] for name in names if name in known}
    simulator = Simulator(SimulatorConfig(names, rate, seed, first_id, frames, resume))

    feed: Feed = AsCoinbase(simulator) if name == "coinbase" else simulator

    def build() -> ExchangeServer:
        return ExchangeServer(
            feed,
            host,
            port,
            speed=speed,
            mode="by-clock",
            sends=sends,
            dialect=DIALECTS[name],
        )

    what = f"simulated market of {len(names)} symbols"
    asyncio.run(_run(build, what, lambda server: _remembering(memory, simulator, server)))


@asynccontextmanager
async def _remembering(
    memory: MarketMemory | None, simulator: Simulator, server: ExchangeServer
) -> AsyncIterator[None]:
    """Keep the market in its file while it is open, and exactly when it closes."""
    if memory is None:
        yield
        return
    memory.reserve(simulator, server.sent)
    task = asyncio.create_task(_note(memory, simulator, server))
    try:
        yield
    finally:
        task.cancel()
        memory.save(simulator, server.sent)


async def _note(memory: MarketMemory, simulator: Simulator, server: ExchangeServer) -> None:
    while True:
        await asyncio.sleep(_REMEMBER_S)
        memory.reserve(simulator, server.sent)


async def _run(
    build: Callable[[], ExchangeServer],
    what: str,
    beside: Callable[[ExchangeServer], AbstractAsyncContextManager[None]] = lambda _: nullcontext(),
) -> None:
    """Serve until Ctrl-C. Raises the `K2Error` that ends the feed early."""
    server = build()
    stop = asyncio.Event()
    stop_on_signals(stop)
    await server.start()
    print(json.dumps({"url": server.url, "port": server.port, "serves": what}), flush=True)
    waiters = [asyncio.create_task(stop.wait()), asyncio.create_task(server.failed.wait())]
    try:
        async with beside(server):
            try:
                await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await server.stop()
    finally:
        for waiter in waiters:
            waiter.cancel()
    if server.error is not None:
        raise server.error
