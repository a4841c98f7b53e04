"""Which feed the demo runs on: a replay, live Binance, or the simulator in its place."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from k2.data_kind import REAL, SIMULATED, SIMULATOR_STATE
from k2.errors import CaptureError, SourceError
from k2.exchange.capture import read_capture, symbols_of
from k2.exchange.dialects import dialect_of
from k2.exchange.feed import CaptureFeed
from k2.setting_feeds import Binance
from k2.sources.binance_protocol import BinanceProtocol
from k2.sources.connector import AiohttpConnector

#: How long Binance may take to answer before the simulator takes over.
PROBE_S = 3.0


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for."""

    captures: tuple[Path, ...]
    speed: str
    until_drained: bool
    by_clock: bool
    data_dir: Path | None
    as_json: bool
    source: str
    symbols: tuple[str, ...]
    rate: int


@dataclass(frozen=True, slots=True)
class Feed:
    """The feed chosen; `why` when it is not the one a user would expect."""

    name: str
    market: str
    live: bool = False
    why: str = ""


async def choose(options: Options, settings: Binance) -> Feed:
    """The feed to run on. Raises `SourceError` when only a live one will do and none answers."""
    if options.captures:
        names = ", ".join(path.name for path in options.captures)
        return Feed(f"replay of {names}", REAL)
    if options.source == "simulator":
        return Feed("built-in simulator", SIMULATED)
    refusal = await no_answer(settings)
    if not refusal:
        return Feed("live Binance", REAL, live=True)
    if options.source == "live":
        raise SourceError(
            f"Binance did not answer: {refusal}; check the network, K2_BINANCE_URL and "
            "K2_BINANCE_FAILOVER_URLS, or use --source simulator"
        )
    why = f"Binance did not answer: {refusal}; using the built-in simulator."
    return Feed("built-in simulator", SIMULATED, why=why)


async def no_answer(settings: Binance) -> str:
    """Why no address opens a WebSocket within `PROBE_S`; empty when one does."""
    connector = AiohttpConnector(
        ssl_verify=settings.ssl_verify, ca_bundle=settings.custom_ca_bundle
    )
    protocol = BinanceProtocol((f"{settings.symbols[0].lower()}@trade",))
    try:
        reasons = []
        for base in (settings.url, *settings.failover_urls):
            try:
                async with asyncio.timeout(PROBE_S):
                    await connector.connect(protocol.url(base))
            except TimeoutError:
                reasons.append(f"{base} within {PROBE_S:g} s")
            except SourceError as exc:
                reasons.append(_short(exc))
            else:
                return ""
        return "; ".join(reasons)
    finally:
        await connector.close()


def _short(error: SourceError) -> str:
    """Host and reason, when nobody could be reached at all."""
    cause = error.__cause__
    if isinstance(cause, aiohttp.ClientConnectorError):
        return f"{cause.host}:{cause.port}: {cause.strerror or cause.os_error}"
    return error.message


def exchange_command(
    options: Options, symbols: tuple[str, ...], port: int, directory: Path
) -> list[str]:
    """The exchange server as a process of its own."""
    command = [sys.executable, "-P", "-m", "k2.cli", "exchange"]
    if not options.captures:
        # A market whose state was lost must not give an id twice: it begins above all of before.
        first_id = time.time_ns() // 1_000_000
        command += ["simulate", "--port", str(port), "--symbols", ",".join(symbols)]
        command += ["--rate", str(options.rate), "--first-id", str(first_id)]
        return [*command, "--state", str(directory / SIMULATOR_STATE)]
    command += ["serve", "--port", str(port), "--speed", options.speed]
    for capture in options.captures:
        command += ["--capture", str(capture.resolve())]
    return [*command, "--by-clock"] if options.by_clock else command


@dataclass(frozen=True, slots=True)
class Recorded:
    """What captures are of: the feed's name, and its settings for them beside the address."""

    feed: str
    symbols: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)


def recorded(captures: tuple[Path, ...], stop: asyncio.Event) -> Recorded:
    """Read recorded captures whole, unless stopped; blocking.

    Raises `CaptureError` naming the file: not there, damaged, of no known layout, empty of streams,
    or of another exchange than the one before.
    """
    found: dict[str, None] = {}
    dialects: dict[str, Path] = {}
    for path in captures:
        frames = itertools.takewhile(lambda _: not stop.is_set(), read_capture(path))
        symbols = symbols_of(frames)
        if not symbols and not stop.is_set():
            raise CaptureError(
                f"capture {path} has no stream of an exchange in it, so there is nothing to "
                'replay; frames of Binance look like {"stream":"btcusdt@trade","data":{…}}',
                path=str(path),
            )
        if not stop.is_set():
            dialects.setdefault(dialect_of(CaptureFeed((path,))).name, path)
        found |= dict.fromkeys(symbols)
    if len(dialects) > 1:
        raise CaptureError(
            f"captures of {' and '.join(dialects)} cannot be replayed by one exchange: "
            f"{', '.join(map(str, dialects.values()))}"
        )
    return _settings_for(next(iter(dialects), "binance"), tuple(found))


def _settings_for(dialect: str, symbols: tuple[str, ...]) -> Recorded:
    """`kraken-v1` is the feed of Kraken with another protocol."""
    feed, _, protocol = dialect.partition("-")
    return Recorded(feed, symbols, {"PROTOCOL": protocol or "v2"} if feed == "kraken" else {})
