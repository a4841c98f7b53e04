"""A load against the configured log, and the worker that stores it where there is no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import aiohttp
from rich.console import Console

from k2.cli.demo.client import WorkerClient, free_port
from k2.cli.demo.processes import Child, ChildFailed
from k2.cli.up import worker_command
from k2.clock import SYSTEM_CLOCK
from k2.open_log import opened
from k2.settings import Settings
from k2.sources.refused import Refused
from k2.tapes.files import blocks
from k2.tapes.journal import Journal
from k2.tapes.load import BLOCK_ROWS, Loaded, Loader, count, without_header
from k2.tapes.reference import ReferenceFile
from k2.tapes.rows import Origin, records_of
from k2.topics import FEED_TOPICS, MarketTopic

_START_S: Final = 60.0
_STOP_S: Final = 30.0
_STALL_S: Final = 120.0
_POLL_S: Final = 0.2


def dry(origins: Sequence[Origin], progress: Callable[[int], None]) -> list[Loaded]:
    """Read and judge every row; blocking."""
    found = []
    for origin in origins:
        made = Loaded(origin.file, origin.layout.name)
        for block in blocks(origin.file.path, BLOCK_ROWS):
            rest = without_header(block, origin)
            batch, bad = records_of(rest, origin, SYSTEM_CLOCK.now_us())
            count(made, len(rest.lines), batch.num_rows, bad)
            progress(len(block.lines))
        found.append(made)
    return found


async def send(
    settings: Settings,
    topic: MarketTopic,
    origins: Sequence[Origin],
    progress: Callable[[int], None],
) -> list[Loaded]:
    """Load every file in turn. Raises `LogError`, `LogLockedError` while a worker has the log."""
    async with opened(settings, topic) as log:
        loader = Loader(
            topic,
            log.epoch,
            log.publisher,
            log.dead_letters,
            Journal(settings.core.data_dir / "loads"),
            SYSTEM_CLOCK,
            progress,
        )
        return [await loader.load(origin) for origin in origins]


async def send_reference(
    settings: Settings, topic: MarketTopic, files: Sequence[ReferenceFile]
) -> None:
    """Put every file's records into the log; returns when it has them."""
    async with opened(settings, topic) as log:
        for file in files:
            futures = list(log.publisher.publish(file.batch, file.content.digest))
            letters = [
                Refused(row.reason, row.raw, f"{file.path.name} entry {row.row}: {row.detail}",
                        SYSTEM_CLOCK.now_us())
                for row in file.bad
            ]  # fmt: skip
            if letters:
                futures += log.dead_letters.frames(letters)
            await asyncio.gather(*futures)


async def drain(settings: Settings, sent: int, console: Console) -> dict[str, int]:
    """Run a worker without feeds until everything in the log is stored.

    Returns `rows` stored and `duplicates` dropped. Raises `ChildFailed`.
    """
    port = free_port()
    child = Child("worker", worker_command(), settings.core.data_dir / "logs" / "load.log")
    await child.start(
        {
            "K2_DATA_DIR": str(settings.core.data_dir.resolve()),
            "K2_API_PORT": str(port),
            "K2_EXCHANGES": ",".join(settings.core.exchanges),
            "K2_REFERENCE": str(settings.core.reference).lower(),
            "K2_DEGRADATION_EXEMPT": "true",
            **{f"K2_{name.upper()}_ENABLED": "false" for name in FEED_TOPICS},
        }
    )
    try:
        async with aiohttp.ClientSession() as http:
            key = settings.api.key.get_secret_value()
            client = WorkerClient(http, f"http://127.0.0.1:{port}", key)
            await client.wait_ready(child, _START_S)
            with console.status("storing …"):
                status = await _stored(client, child, sent)
    finally:
        await child.stop(_STOP_S)
    return {"rows": status["sink"]["rows"], "duplicates": status["validate"]["duplicates"]}


async def _stored(client: WorkerClient, child: Child, sent: int) -> dict[str, Any]:
    """The worker's status once it has judged what was sent and stored what is to be stored."""
    loop = asyncio.get_running_loop()
    moved_s, seen, quiet = loop.time(), (-1, -1), 0
    while True:
        child.check()
        status = await client.status()
        now = (status["validate"]["records"], status["sink"]["rows"])
        if now != seen:
            moved_s, seen, quiet = loop.time(), now, 0
        elif status["drained"] and now[0] >= sent:
            quiet += 1
        # What was just read may not show in what is drained yet: see it at rest for a while.
        if quiet * _POLL_S >= 1.0:
            return status
        if loop.time() - moved_s > _STALL_S:
            raise ChildFailed(
                f"nothing has been stored for {_STALL_S:.0f} s; the worker's log:\n"
                f"{child.log_tail()}"
            )
        await asyncio.sleep(_POLL_S)
