"""`k2 query`: ask a server, or the lake in a data directory."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import click

from k2.ask import worker_url
from k2.cli.parameters import names_of
from k2.cli.render import FORMATS, render
from k2.client import K2Client, Rows
from k2.errors import ConfigError
from k2.log import configure_quietly
from k2.settings import Settings, load_settings
from k2.timeframes import FRAMES_US, Timeframe

Command = Callable[..., None]
Question = Callable[..., Awaitable[Rows]]


@click.group()
def query() -> None:
    """Ask for market data: a server, or straight a data directory.

    Without --url and --data-dir the worker at K2_API_HOST and K2_API_PORT is asked, with
    K2_API_KEY. With --data-dir no worker is needed; answers then come from the lake alone. Times
    are ISO 8601, UTC without an offset.
    """


def _asks(name: str, *parameters: Callable[[Command], Command]) -> Callable[[Question], Question]:
    """Make an async question of a client a command that prints its rows."""

    def wrap(question: Question) -> Question:
        @functools.wraps(question)
        def command(
            url: str | None,
            key: str | None,
            data_dir: Path | None,
            shape: str,
            output: Path | None,
            wide: bool,
            **given: Any,
        ) -> None:
            rows = asyncio.run(_answer(question, which_client(url, key, data_dir), given))
            if rows.partial:
                click.echo("k2: the answer is partial: rows are missing for now", err=True)
            render(rows.table, shape, output, wide=wide)

        made: Command = command
        for parameter in reversed([*parameters, *_COMMON]):
            made = parameter(made)
        query.command(name)(made)
        return question

    return wrap


_WHOM: tuple[Callable[[Command], Command], ...] = (
    click.option("--url", help="Of a server, such as http://127.0.0.1:8000."),
    click.option("--key", envvar="K2_API_KEY", help="X-API-Key; default: K2_API_KEY."),
    click.option(
        "--data-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Read the lake in this directory; no worker is needed.",
    ),
)


def asks(command: Command) -> Command:
    """Options `url`, `key` and `data_dir` of a command, as `which_client` takes them."""
    for option in reversed(_WHOM):
        command = option(command)
    return command


_COMMON: tuple[Callable[[Command], Command], ...] = (
    asks,
    click.option(
        "--format", "shape", type=click.Choice(FORMATS), default="table", show_default=True
    ),
    click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A file."),
    click.option("--wide", is_flag=True, help="Table: all columns."),
)
_SYMBOLS = click.option("--symbols", "--symbol", help="One or several, comma separated.")
_SYMBOL = click.option("--symbol", required=True)
_EXCHANGE = click.option("--exchange")
_PERIOD = (
    click.option("--from", "start", help="First moment."),
    click.option("--to", "end", help="First moment after."),
)
_AS_OF = click.option("--as-of", help="The lake as it was at this time.")
_SNAPSHOT = click.option("--snapshot-id", help="The lake at this snapshot.")


def _limit(default: int) -> Callable[[Command], Command]:
    return click.option(
        "--limit", type=click.IntRange(min=1), default=default, show_default=True, help="Most rows."
    )


_RECORDS = (
    _SYMBOLS,
    _EXCHANGE,
    *_PERIOD,
    _limit(20),
    click.option("--order", type=click.Choice(["desc", "asc"]), default="desc", show_default=True),
    click.option("--fields", help="Columns, comma separated."),
    _AS_OF,
    _SNAPSHOT,
)


@_asks("trades", *_RECORDS)
async def trades(client: K2Client, symbols: str | None, fields: str | None, **given: Any) -> Rows:
    """Trades, newest first."""
    return await client.trades(split(symbols), fields=split(fields), **given)


@_asks("quotes", *_RECORDS)
async def quotes(client: K2Client, symbols: str | None, fields: str | None, **given: Any) -> Rows:
    """Quotes, newest first."""
    return await client.quotes(split(symbols), fields=split(fields), **given)


@_asks(
    "ohlcv",
    _SYMBOL,
    click.option(
        "--timeframe", type=click.Choice(list(FRAMES_US)), default="1m", show_default=True
    ),
    _EXCHANGE,
    *_PERIOD,
    _limit(60),
    click.option("--fill", type=click.Choice(["forward"]), help="Also windows without trades."),
    _AS_OF,
    _SNAPSHOT,
)
async def ohlcv(client: K2Client, symbol: str, timeframe: Timeframe, **given: Any) -> Rows:
    """Candles, newest first."""
    return await client.ohlcv(symbol, timeframe, **given)


@_asks("summary", click.argument("symbol"), click.argument("day"), _EXCHANGE, _AS_OF, _SNAPSHOT)
async def summary(client: K2Client, symbol: str, day: str, **given: Any) -> Rows:
    """One DAY (2024-08-08, UTC) of SYMBOL."""
    return await client.summary(symbol, day, **given)


@_asks("symbols", _EXCHANGE, _AS_OF)
async def symbols(client: K2Client, **given: Any) -> Rows:
    """Symbols with trades."""
    return await client.symbols(**given)


@_asks(
    "snapshots",
    click.option(
        "--table",
        type=click.Choice(["trades", "quotes", "gaps"]),
        default="trades",
        show_default=True,
    ),
    _limit(10),
)
async def snapshots(client: K2Client, **given: Any) -> Rows:
    """Snapshots to travel to, newest first."""
    return await client.snapshots(**given)


@_asks("sql", click.argument("text"), _limit(1_000), _AS_OF)
async def sql(client: K2Client, text: str, **given: Any) -> Rows:
    """One SELECT over the views.

    They are trades, quotes, agg_trades, reference_data, gaps, candles and market_data.
    """
    return await client.sql(text, **given)


@_asks(
    "asof",
    _SYMBOL,
    _EXCHANGE,
    *_PERIOD,
    _limit(20),
    click.option("--max-age-s", type=int, help="An older quote is not in force any more."),
    _AS_OF,
)
async def asof(client: K2Client, symbol: str, **given: Any) -> Rows:
    """Trades with the quote in force when they happened."""
    return await client.asof(symbol, **given)


@_asks(
    "gaps",
    click.option("--symbol"),
    _EXCHANGE,
    click.option(
        "--state", type=click.Choice(["open", "closed", "all"]), default="open", show_default=True
    ),
    _limit(100),
)
async def gaps(client: K2Client, **given: Any) -> Rows:
    """Ids that never came."""
    return await client.gaps(**given)


async def _answer(
    question: Question, client: AbstractAsyncContextManager[K2Client], given: dict[str, Any]
) -> Rows:
    async with client as opened:
        return await question(opened, **given)


def which_client(
    url: str | None, key: str | None, data_dir: Path | None
) -> AbstractAsyncContextManager[K2Client]:
    """Of `--url`, `--data-dir`, or else of the settings' own worker. Raises `ConfigError`."""
    if url is not None and data_dir is not None:
        raise ConfigError("--url asks a server and --data-dir a directory: give one of them")
    settings = load_settings()
    configure_quietly(settings)
    if data_dir is not None:
        return _offline(settings, data_dir)
    return K2Client(
        worker_url(settings.api) if url is None else url,
        key=settings.api.key.get_secret_value() if key is None else key,
    )


def _offline(settings: Settings, data_dir: Path) -> AbstractAsyncContextManager[K2Client]:
    from k2.query.offline import offline_client  # noqa: PLC0415 - a server's parts, only if needed

    core = settings.core.model_copy(update={"data_dir": data_dir})
    return offline_client(settings.model_copy(update={"core": core}))


def split(text: str | None) -> list[str] | None:
    """Names, comma separated; None when none are given."""
    return None if text is None else names_of(text)
