"""`k2 dlq`: look at dead letters, and put them into the log again."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from k2.cli.parameters import Moment
from k2.dlq.desk import Desk
from k2.dlq.letters import Letter, Standing, Wanted, place_of
from k2.dlq.log import open_log
from k2.errors import InvalidParameter
from k2.log import configure_structlog
from k2.settings import load_settings


def _filters(command: click.decorators.FC) -> click.decorators.FC:
    options = [
        click.option("--topic", help="A log of record or its dead-letter topic; default: all."),
        click.option("--partition", type=int),
        click.option(
            "--reason", "reasons", multiple=True, help="A reason's code; may be repeated."
        ),
        click.option("--since", type=Moment(), help="ISO time or age (2h): refused then or later."),
        click.option("--until", type=Moment(), help="ISO time or age (2h): refused before then."),
        click.option("--from-offset", type=int, help="Lowest offset in the dead-letter topic."),
        click.option("--to-offset", type=int, help="Highest offset in the dead-letter topic."),
        click.option("--data-dir", type=click.Path(path_type=Path), help="As K2_DATA_DIR."),
        click.option("--json", "as_json", is_flag=True, help="One JSON object."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _wanted(options: dict[str, Any], idents: tuple[str, ...] = ()) -> Wanted:
    for ident in idents:
        place_of(ident)
    return Wanted(
        options["topic"],
        options["partition"],
        tuple(options["reasons"]),
        options["since"],
        options["until"],
        options["from_offset"],
        options["to_offset"],
        idents,
    )


def _run(data_dir: Path | None, work: Callable[[Desk], Any]) -> Any:
    if data_dir is not None:
        os.environ["K2_DATA_DIR"] = str(data_dir.resolve())
    settings = load_settings()
    configure_structlog()  # standard output is the answer's

    async def run() -> Any:
        async with open_log(settings) as log:
            return await work(await asyncio.to_thread(Desk.open, settings, log))

    return asyncio.run(run())


@click.group()
def dlq() -> None:
    """Dead letters: records that were refused, with their raw bytes and the reason."""


@dlq.command("list")
@_filters
@click.option("--limit", default=100, show_default=True, help="Newest letters shown; 0: all.")
def list_(limit: int, as_json: bool, data_dir: Path | None, **options: Any) -> None:
    """List dead letters and what became of them."""
    found: list[Standing] = _run(data_dir, lambda desk: desk.find(_wanted(options)))
    shown = sorted(found, key=lambda one: one.letter.timestamp_us)[-limit:]
    reasons = Counter(one.letter.reason for one in found)
    if as_json:
        rows = [_summary(one) for one in shown]
        print(json.dumps({"letters": rows, "count": len(found), "reasons": dict(reasons)}))
        return
    for one in shown:
        letter = one.letter
        where = f"offset {letter.log_offset}" if letter.log_offset >= 0 else "a frame"
        print(f"{letter.ident}  {_time(letter)}  {letter.reason}  {where}  {one.state}")
        print(f"    {letter.detail[:160]}")
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    print(f"{len(found)} dead letters{f': {counts}' if counts else ''}")


@dlq.command()
@click.argument("ident", metavar="ID")
@click.option("--data-dir", type=click.Path(path_type=Path), help="As K2_DATA_DIR.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(ident: str, data_dir: Path | None, as_json: bool) -> None:
    """Show one dead letter: its reason, its place, its bytes, and what became of it."""
    place_of(ident)

    async def work(desk: Desk) -> dict[str, Any]:
        found = await desk.find(Wanted(idents=(ident,)))
        if not found:
            raise InvalidParameter("id", ident, "the id of a dead letter; see `k2 dlq list`")
        return {**_summary(found[0]), **_content(desk, found[0].letter)}

    shown: dict[str, Any] = _run(data_dir, work)
    if as_json:
        print(json.dumps(shown, default=str))
        return
    width = max(map(len, shown))
    for name, value in shown.items():
        print(f"{name:<{width}}  {value}")


@dlq.command()
@click.argument("idents", metavar="[ID]...", nargs=-1)
@_filters
@click.option("--all", "everything", is_flag=True, help="Needed to replay without any filter.")
@click.option("--again", is_flag=True, help="Also what was re-driven before.")
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
def replay(
    idents: tuple[str, ...],
    everything: bool,
    again: bool,
    dry_run: bool,
    as_json: bool,
    data_dir: Path | None,
    **options: Any,
) -> None:
    """Put the raw bytes of dead letters into their log of record again.

    What passes now lands once, however often it is replayed: its exchange id is known then. What
    is refused again comes back as a dead letter that names the first. Each letter is marked.
    """
    wanted = _wanted(options, idents)
    if wanted.everything and not everything:
        raise click.UsageError("name letters, give a filter, or say --all")

    async def work(desk: Desk) -> Any:
        return await desk.replay(await desk.find(wanted), again=again, dry_run=dry_run)

    done = _run(data_dir, work)
    sent = [
        {"id": letter.ident, "topic": letter.log_topic, "partition": letter.log_partition,
         "offset": None if dry_run else offset}
        for letter, offset in done.sent
    ]  # fmt: skip
    if as_json:
        print(json.dumps({"dry_run": dry_run, "redriven": sent, "left": dict(done.left)}))
        return
    for row in sent:
        at = "would go" if dry_run else f"at offset {row['offset']}"
        print(f"{row['id']}  to {row['topic']}[{row['partition']}]  {at}")
    left = "".join(f"; left {count}: {why}" for why, count in done.left.items())
    print(f"{len(sent)} {'would be ' if dry_run else ''}re-driven{left}")


def _time(letter: Letter) -> str:
    return datetime.fromtimestamp(letter.timestamp_us / 1e6, UTC).isoformat(timespec="milliseconds")


def _summary(one: Standing) -> dict[str, Any]:
    letter = one.letter
    return {
        "id": letter.ident,
        "state": one.state,
        "reason": letter.reason,
        "detail": letter.detail,
        "refused_at": _time(letter),
        "log": letter.log_topic,
        "log_epoch": letter.log_epoch,
        "log_partition": letter.log_partition,
        "log_offset": letter.log_offset,
        "first_letter": letter.first,
        "redriven": [mark.detail for mark in one.marks],
        "refused_again_as": [other.ident for other in one.again],
    }


def _content(desk: Desk, letter: Letter) -> dict[str, Any]:
    return {
        "key": _text(letter.key),
        "value": _text(letter.value),
        "record": desk.decoded(letter),
    }


def _text(raw: bytes | None) -> str | None:
    """As text where it is, else in base 64."""
    if raw is None:
        return None
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = "\0"
    return text if text.isprintable() else f"base64:{base64.b64encode(raw).decode()}"
