"""Tapes into the log of record: whole files or nothing, in order, each row once.

Guarantee: a row the log acknowledged is in the lake once, however often and in whatever parts its
file is loaded: its id is the digest of the file and its line. A file is read to its end before its
first row is sent. Lines that are no record become dead letters with their number.
"""

from __future__ import annotations

import asyncio
import csv
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from k2.clock import Clock
from k2.errors import TapeError
from k2.sources.refused import Refused
from k2.steps.dead_letters import DeadLetters
from k2.steps.publish import Publisher
from k2.tapes.files import Block, TapeFile, blocks, examine
from k2.tapes.journal import Journal
from k2.tapes.layouts import Layout, choose, header_of
from k2.tapes.rows import BadRow, Origin, records_of
from k2.tapes.times import zone
from k2.topics import MarketTopic

#: Lines read, mapped and sent together.
BLOCK_ROWS: Final = 20_000
#: Record batches on their way to the log before the next block is taken.
_IN_FLIGHT: Final = 64
#: Where a tape's companies are listed, seen from the tape.
_COMPANIES: Final = Path("..", "reference", "company_info.csv")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command asks for; None: what the layout says, or UTC and USD."""

    kind: str
    exchange: str
    asset_class: str
    symbol: str | None = None
    layout: str | None = None
    timezone: str | None = None
    currency: str | None = None
    reference: Path | None = None


@dataclass(slots=True)
class Loaded:
    """What became of one file. `before`: lines the log had already."""

    file: TapeFile
    layout: str
    rows: int = 0
    sent: int = 0
    before: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    #: The first bad rows, for people.
    examples: list[BadRow] = field(default_factory=list)


def origins(paths: Sequence[Path], wanted: Wanted) -> list[Origin]:
    """What each file is. Raises `TapeError` for the first that cannot be loaded, before any is."""
    return [_origin(examine(path), wanted) for path in paths]


def _origin(file: TapeFile, wanted: Wanted) -> Origin:
    layout = choose(wanted.kind, file.first, wanted.layout, str(file.path))
    columns = layout.columns or tuple(header_of(file.first[0]))
    if len(set(columns)) != len(columns) or not all(columns):
        raise TapeError(
            f"{file.path}: its header names a column twice or not at all: {file.first[0][:200]!r}",
            path=str(file.path),
        )
    tz = zone(wanted.timezone or layout.timezone or "UTC")
    symbol, vendor = _symbol(file.path, layout, wanted)
    return Origin(
        file,
        layout,
        columns,
        wanted.exchange.upper(),
        wanted.asset_class,
        (wanted.currency or layout.currency or "USD").upper(),
        tz,
        symbol,
        vendor,
    )


def _symbol(path: Path, layout: Layout, wanted: Wanted) -> tuple[str, dict[str, str]]:
    """The symbol of a file that does not name it: as given, else by the company its name is of."""
    if not layout.per_symbol:
        return "", {}
    company = path.name.partition(".")[0]
    vendor = {"company_id": company} if company.isdigit() else {}
    if wanted.symbol:
        return wanted.symbol.upper(), vendor
    companies = wanted.reference or path.parent / _COMPANIES
    if not companies.is_file():
        raise TapeError(
            f"{path} does not say whose tape it is, and {companies} is not there; give --symbol, "
            "or --reference with a file of company_id,symbol,…",
            path=str(path),
        )
    with companies.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            if row.get("company_id") == company and row.get("symbol"):
                return str(row["symbol"]).upper(), vendor
    raise TapeError(
        f"{companies} lists no company {company!r}, which {path} is named after; give --symbol",
        path=str(path),
    )


class Loader:
    """Sends files to the log of record of `topic`, which is in its incarnation `epoch`."""

    def __init__(
        self,
        topic: MarketTopic,
        epoch: str,
        publisher: Publisher,
        dead_letters: DeadLetters,
        journal: Journal,
        clock: Clock,
        progress: Callable[[int], None] = lambda _lines: None,
    ) -> None:
        self._topic = topic
        self._epoch = epoch
        self._publisher = publisher
        self._dead_letters = dead_letters
        self._journal = journal
        self._clock = clock
        self._progress = progress

    async def load(self, origin: Origin) -> Loaded:
        """Load one file; returns when the log has all of it. Raises `LogError`."""
        file = origin.file
        key = f"{self._topic.log}-{origin.symbol or 'all'}-{file.digest}"
        done = self._journal.rows(key, self._epoch)
        made = Loaded(file, origin.layout.name, before=done)
        pending: list[tuple[int, list[asyncio.Future[int]]]] = []
        for block in blocks(file.path, BLOCK_ROWS):
            rest = without_header(behind(block, done), origin)
            self._progress(len(block.lines))
            if rest.lines:
                futures = await self._send(rest, origin, made)
                pending.append((block.first + len(block.lines) - 1, futures))
            while sum(len(futures) for _, futures in pending) > _IN_FLIGHT:
                await self._settle(key, pending)
        while pending:
            await self._settle(key, pending)
        return made

    async def _send(self, block: Block, origin: Origin, made: Loaded) -> list[asyncio.Future[int]]:
        now_us = self._clock.now_us()
        batch, bad = await asyncio.to_thread(records_of, block, origin, now_us)
        count(made, len(block.lines), batch.num_rows, bad)
        futures = list(self._publisher.publish(batch, origin.file.digest)) if len(batch) else []
        if bad:
            futures += self._dead_letters.frames([_letter(row, origin.file, now_us) for row in bad])
        return futures

    async def _settle(self, key: str, pending: list[tuple[int, list[asyncio.Future[int]]]]) -> None:
        """Wait for the oldest block and remember that the log has it."""
        last, futures = pending.pop(0)
        await asyncio.gather(*futures)
        self._journal.note(key, self._epoch, last)


def count(made: Loaded, lines: int, sent: int, bad: list[BadRow]) -> None:
    """Add a block to the sums."""
    made.rows += lines
    made.sent += sent
    made.bad.update(row.reason for row in bad)
    made.examples += bad[: max(0, 5 - len(made.examples))]


def behind(block: Block, done: int) -> Block:
    """What of `block` comes after line `done`."""
    skip = max(0, done - block.first + 1)
    return Block(block.first + skip, block.lines[skip:])


def without_header(block: Block, origin: Origin) -> Block:
    """`block` without the line that names the columns."""
    return behind(block, 1) if origin.layout.columns is None else block


def _letter(row: BadRow, file: TapeFile, now_us: int) -> Refused:
    return Refused(row.reason, row.raw, f"{file.path.name} row {row.row}: {row.detail}", now_us)
