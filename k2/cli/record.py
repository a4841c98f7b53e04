"""`k2 record`: an exchange's frames into files, exactly as they came."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from k2.cli.parameters import names_of
from k2.cli.signals import stop_on_signals
from k2.errors import ConfigError
from k2.log import configure
from k2.setting_feeds import Feed
from k2.settings import Settings, load_settings
from k2.topics import FEED_TOPICS

if TYPE_CHECKING:
    from k2.sources.record import Recorder

_TELL_S: Final = 10.0


@click.command()
@click.option("--exchange", required=True, type=click.Choice(sorted(FEED_TOPICS)))
@click.option("--symbols", help="As the exchange writes them; default: its setting.")
@click.option("--streams", help="Channels per symbol; default: its setting.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--url", help="WebSocket base address; default: its setting.")
@click.option("--seconds", type=click.FloatRange(min=0.1), help="Stop by itself after so long.")
@click.option("--rotate-mb", default=256, show_default=True, type=click.IntRange(min=1))
@click.option("--rotate-minutes", default=60.0, show_default=True, type=click.FloatRange(min=0.01))
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object.")
def record(
    exchange: str,
    symbols: str | None,
    streams: str | None,
    out: Path,
    url: str | None,
    seconds: float | None,
    rotate_mb: int,
    rotate_minutes: float,
    as_json: bool,
) -> None:
    """Record raw frames with their receive times until Ctrl-C.

    The files are gzip, one row of them per connection, and are replayed by `k2 exchange serve
    --capture FILE` and `k2 demo --capture FILE`. Nothing is left out while the connection holds:
    a disk that is too slow makes the socket wait. A new connection is marked in the file.
    """
    from k2.sources.capture_file import Rotation  # noqa: PLC0415 - the help needs none of it
    from k2.sources.record import facts  # noqa: PLC0415

    settings = load_settings()
    configure(settings)
    chosen: dict[str, Any] = {
        "symbols": tuple(names_of(symbols)),
        "streams": tuple(names_of(streams)),
        "url": url,
    }
    rotation = Rotation(rotate_mb * 1024 * 1024, rotate_minutes * 60)
    recorder = _recorder(settings, exchange, chosen, out, rotation)
    asyncio.run(_run(recorder, seconds, quiet=as_json))
    report = facts(recorder)
    if as_json:
        print(json.dumps(report))
        return
    for session in report["sessions"]:
        for path in session["files"]:
            click.echo(path)
    click.echo(_line(report))


def _recorder(
    settings: Settings, name: str, chosen: dict[str, Any], out: Path, rotation: Any
) -> Recorder:
    from k2.clock import SYSTEM_CLOCK  # noqa: PLC0415
    from k2.sources.connector import FRAME_CEILING_BYTES  # noqa: PLC0415
    from k2.sources.exchanges import EXCHANGES  # noqa: PLC0415
    from k2.sources.open import new_session  # noqa: PLC0415
    from k2.sources.record import Recorder  # noqa: PLC0415

    known: Feed = getattr(settings, name)
    given = {field: value for field, value in chosen.items() if value}
    feed = known.model_copy(update={**given, "max_frame_bytes": FRAME_CEILING_BYTES})
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is not a directory; give one, it need not exist yet")
    entry = EXCHANGES[name]
    return Recorder(
        [
            new_session(entry, spec, feed, SYSTEM_CLOCK, max_frame_bytes=FRAME_CEILING_BYTES)
            for spec in entry.sessions(feed)
        ],
        out,
        rotation,
    )


async def _run(recorder: Recorder, seconds: float | None, *, quiet: bool) -> None:
    stop = asyncio.Event()
    stop_on_signals(stop)
    if seconds is not None:
        asyncio.get_running_loop().call_later(seconds, stop.set)
    telling = None if quiet else asyncio.create_task(_tell(recorder))
    try:
        await recorder.run(stop)
    finally:
        if telling is not None:
            telling.cancel()


async def _tell(recorder: Recorder) -> None:
    from k2.sources.record import facts  # noqa: PLC0415

    while True:
        await asyncio.sleep(_TELL_S)
        report = facts(recorder)
        states = ", ".join(
            f"{one['session']} {one['state']} {one['last_error']}".strip()
            for one in report["sessions"]
        )
        print(f"{_line(report)} ({states})", file=sys.stderr, flush=True)


def _line(report: dict[str, Any]) -> str:
    lost = sum(sum(one["reconnects"].values()) for one in report["sessions"])
    again = f", connected again {lost} times" if lost else ""
    other = f", {report['other']:,} of them not JSON" if report["other"] else ""
    return (
        f"{report['frames'] + report['other']:,} frames{other}, "
        f"{report['bytes'] / 1e6:,.1f} MB compressed{again}"
    )
