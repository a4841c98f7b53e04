"""Back-fill: what is missing is fetched from the exchange's history and put into the log.

The lake's open gaps say what is missing, so a restart goes on with what is left. A worker fetches
for the sessions it runs. Fetched records are marked (`is_backfill`, and `source` in vendor_data)
and take the way of every record: validation strikes them off the gaps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import pyarrow as pa
import structlog

from k2 import metrics
from k2.breakers import Breaker
from k2.clock import Clock
from k2.errors import SourceError
from k2.pipeline.gap_report import Gap
from k2.sources.history import HISTORIES, History, rest_base
from k2.sources.page import PAGE, HistoryFrame, Wanted
from k2.sources.plan import SessionSpec
from k2.steps.source import SourceFeed

log = structlog.get_logger(__name__)

#: Seconds between looks at the open gaps.
_LOOK_S: Final = 5.0
#: A range that was fetched closes once it is stored; one that stays open is asked for again later,
#: ever more rarely: the exchange may not have it.
_AGAIN_S: Final = 60.0
_LONGEST_S: Final = 3_600.0
#: More missing ids in one gap than any exchange's history is asked for.
MAX_IDS: Final = 100_000
_TIMEOUT_S: Final = 20.0
_SESSION: Final = "backfill"
#: Too many requests; Binance says 418 when it has banned an address.
_LIMITED: Final = (418, 429)

#: Exchange, data type, symbol, first and last id.
Range = tuple[str, str, str, int, int]


@dataclass(slots=True)
class BackfillCounts:
    """What was fetched."""

    requests: int = 0
    failures: int = 0
    records: int = 0


@dataclass(slots=True)
class _Tried:
    """When a range may be asked for again."""

    due_s: float
    wait_s: float


def _no_breaker(_exchange: str) -> Breaker | None:
    return None


@dataclass(slots=True)
class BackfillStep:
    """Fetches for the sessions that `running` gives; `gaps` are those of the lake.

    `breaker_of`: an exchange's; while it is open its history is not asked.
    """

    running: Callable[[], Sequence[tuple[SourceFeed, SessionSpec]]]
    gaps: Callable[[], Awaitable[list[Gap]]]
    clock: Clock
    #: The exchange time (ns) of the newest stored trade below an id: (exchange, symbol, id).
    time_below: Callable[[str, str, int], Awaitable[int]]
    breaker_of: Callable[[str], Breaker | None] = _no_breaker
    counts: BackfillCounts = field(default_factory=BackfillCounts)
    _tried: dict[Range, _Tried] = field(default_factory=dict)

    async def run(self) -> None:
        """Fetch what is missing, for ever."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S)) as http:
            while True:
                if any(feed.settings.backfill for feed, _ in self.running()):
                    await self.fill(http)
                await self.clock.sleep(_LOOK_S)

    async def fill(self, http: aiohttp.ClientSession) -> None:
        """One look at the open gaps."""
        missing = [gap for gap in await self.gaps() if gap.closed_at is None]
        for feed, spec in self.running():
            if not feed.settings.backfill:
                continue
            for data_type, history in _histories(feed):
                for symbol in spec.symbols:
                    for key in self._due(_ranges(missing, feed, data_type, symbol), feed):
                        wanted = await self._wanted(history, symbol, key)
                        if wanted is not None:
                            await self._fetch(http, feed, spec, history, wanted)

    async def _wanted(self, history: History, symbol: str, key: Range) -> Wanted | None:
        exchange, _, _, first, last = key
        wanted = Wanted(symbol, first, last)
        if not history.by_time:
            return wanted
        below = await self.time_below(exchange, plain(symbol), first)
        # Asked from nowhere it would begin with the exchange's first trade.
        return wanted._replace(since_ns=below) if below else None

    def _due(self, ranges: Iterable[Range], feed: SourceFeed) -> Iterator[Range]:
        """What to ask for now, one after the other; nothing more once the history is left alone."""
        breaker = self.breaker_of(feed.exchange.name)
        for key in ranges:
            exchange, _, symbol, first, last = key
            now_s = self.clock.monotonic_s()
            if breaker is not None and not breaker.ready:
                return
            tried = self._tried.get(key)
            if tried is not None and now_s < tried.due_s:
                continue
            wait_s = min(_LONGEST_S, tried.wait_s * 2) if tried else _AGAIN_S
            self._tried[key] = _Tried(now_s + wait_s, wait_s)
            if last - first >= MAX_IDS:
                log.warning("gap_too_large", exchange=exchange, symbol=symbol, ids=last - first + 1)
            else:
                yield key

    async def _fetch(
        self,
        http: aiohttp.ClientSession,
        feed: SourceFeed,
        spec: SessionSpec,
        history: History,
        wanted: Wanted,
    ) -> None:
        settings = feed.settings
        base = rest_base(settings.rest_url, settings.url, history.live)
        breaker = self.breaker_of(feed.exchange.name)
        rest: Wanted | None = wanted
        while rest is not None:
            try:
                with breaker.guarding(_blames) if breaker else nullcontext():
                    frames = await self._ask(http, base + history.url(rest), history, rest.symbol)
            except SourceError as exc:
                self.counts.failures += 1
                log.warning("backfill_failed", exchange=feed.exchange.name, error=exc.message)
                await self.clock.sleep(float(exc.details.get("retry_after_s", 0.0)))
                return
            chosen = [one.frame for one in frames if rest.first <= one.ident <= rest.last]
            await self._publish(feed, spec, chosen)
            await self.clock.sleep(1 / settings.backfill_per_s)
            rest = following(rest, frames, by_time=history.by_time)

    async def _ask(
        self, http: aiohttp.ClientSession, url: str, history: History, symbol: str
    ) -> list[HistoryFrame]:
        self.counts.requests += 1
        try:
            async with http.get(url) as answer:
                content = await answer.read()
                if answer.status != 200:
                    wish = answer.headers.get("Retry-After", "")
                    raise SourceError(
                        f"{url} answered {answer.status}: {content[:200]!r}",
                        url=url,
                        status=answer.status,
                        retry_after_s=float(wish) if wish.isdigit() else 0.0,
                    )
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise SourceError(f"{url} gave no history: {exc!r}", url=url) from exc
        return history.frames(symbol, content)

    async def _publish(self, feed: SourceFeed, spec: SessionSpec, frames: list[bytes]) -> None:
        if not frames:
            return
        now_us = self.clock.now_us()
        mapper = feed.exchange.mapper(spec, feed.settings)
        mapped = mapper.map(
            [(now_us, frame) for frame in frames], ingestion_us=now_us, is_backfill=True
        )
        futures: list[asyncio.Future[int]] = []
        for data_type, batch in mapped.batches():
            marked = marked_as(batch, "rest_history")
            futures += feed.publishers[data_type].publish(marked, _SESSION)
            self.counts.records += batch.num_rows
            metrics.BACKFILLED.labels(feed.exchange.name).inc(batch.num_rows)
        if mapped.refused:
            futures += feed.dead_letters.frames(mapped.refused)
        await asyncio.gather(*futures)
        log.info("backfilled", exchange=feed.exchange.name, records=len(frames))


def following(asked: Wanted, got: Sequence[HistoryFrame], *, by_time: bool) -> Wanted | None:
    """What is to be asked for next; None when that was all, or the history has no more.

    A page of a history by time may hold only what came before the gap: it goes on at its end.
    """
    if not by_time:
        rest = asked._replace(first=min(asked.first + PAGE, asked.last + 1))
    else:
        reached = max((one.ident for one in got), default=-1)
        end_ns = max((one.time_ns for one in got), default=0)
        if end_ns <= asked.since_ns:
            return None
        rest = asked._replace(first=max(asked.first, reached + 1), since_ns=end_ns)
    return rest if rest.first <= rest.last else None


def _blames(error: Exception) -> bool:
    """A request that was understood and refused says nothing of the next; a limit does."""
    status = int(error.details.get("status", 0)) if isinstance(error, SourceError) else 400
    return not 400 <= status < 500 or status in _LIMITED


def marked_as(batch: pa.RecordBatch, source: str) -> pa.RecordBatch:
    """`batch` with `source` in the vendor_data of each row."""
    column = batch.schema.get_field_index("vendor_data")
    rows = [[*(row or ()), ("source", source)] for row in batch.column(column).to_pylist()]
    marked = pa.array(rows, batch.schema.field(column).type)
    return batch.set_column(column, batch.schema.field(column), marked)


def _histories(feed: SourceFeed) -> list[tuple[str, History]]:
    """The data types of a feed whose history can be asked, as it is configured."""
    return [
        (data_type, history)
        for (exchange, data_type), history in HISTORIES.items()
        if exchange == feed.exchange.name and history.serves(feed.settings)
    ]


def _ranges(missing: list[Gap], feed: SourceFeed, data_type: str, symbol: str) -> list[Range]:
    """Open ranges of one symbol; `symbol` is the exchange's own name."""
    exchange = feed.exchange.name
    wanted = (exchange.upper(), data_type, plain(symbol))
    return [
        (exchange, data_type, symbol, *run)
        for gap in missing
        if (gap.feed.exchange, gap.feed.data_type, gap.feed.symbol) == wanted
        for run in gap.missing
    ]


def plain(symbol: str) -> str:
    """An exchange's name of a symbol as K2 writes it."""
    return "".join(char for char in symbol.upper() if char.isalnum())


def facts(counts: BackfillCounts) -> dict[str, Any]:
    """For `/v1/status`."""
    return {
        "requests": counts.requests,
        "failures": counts.failures,
        "records": counts.records,
    }
