"""Questions over HTTP and how long they take: one after the other, or a hundred clients at once.

Warm: every question was asked before. Cold: nothing of the kind was asked since the worker began,
and each request is the first to ask for its symbol (or set of symbols) on its day.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode

import aiohttp
import numpy as np

from k2.cli.bench.query_lake import Shape
from k2.errors import K2Error
from k2.times import DAY_US

MANY: Final = 20
_WARM_QUESTIONS: Final = 100


@dataclass(frozen=True, slots=True)
class Bar:
    """Milliseconds that must not be exceeded."""

    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of question. `ask`: its URL for some symbols and the start of a day, µs.

    `newest`: the warm question, where it is not one of a day. `symbols`: how many it asks for.
    """

    name: str
    ask: Callable[[Sequence[str], int], str]
    newest: Callable[[Sequence[str]], str] | None = None
    symbols: int = 1
    bar: Bar | None = None


def _url(path: str, **given: Any) -> str:
    return f"{path}?{urlencode(given)}"


def _simple(symbols: Sequence[str], day_us: int) -> str:
    return _url("/v1/trades", symbol=symbols[0], limit=100, end_time=day_us + DAY_US * 3 // 4)


def _range(symbols: Sequence[str], day_us: int) -> str:
    # Half of one day and half of the next: bounds that no partition has.
    start_us = day_us - DAY_US // 2
    return _url("/v1/trades", symbol=symbols[0], limit=200, start_time=start_us,
                end_time=start_us + DAY_US)  # fmt: skip


def _ohlcv(symbols: Sequence[str], day_us: int) -> str:
    return _url("/v1/ohlcv/1m", symbol=symbols[0], limit=1_440, start_time=day_us,
                end_time=day_us + DAY_US)  # fmt: skip


def _multi(symbols: Sequence[str], day_us: int) -> str:
    end_us = day_us + DAY_US * 3 // 4
    return _url("/v1/trades", symbols=",".join(symbols), limit=200, end_time=end_us)


def _latest(symbols: Sequence[str], day_us: int) -> str:
    return _url("/v1/latest", symbols=",".join(symbols), data_type="trades", as_of=day_us + DAY_US)


KINDS: Final = (
    Kind(
        "simple filter",
        _simple,
        lambda names: _url("/v1/trades", symbol=names[0], limit=100),
        bar=Bar(15, 60),
    ),
    Kind("24 h range", _range, bar=Bar(20, 80)),
    Kind("1-minute OHLCV of a day", _ohlcv, bar=Bar(30, 120)),
    Kind(
        f"{MANY} symbols",
        _multi,
        lambda names: _url("/v1/trades", symbols=",".join(names), limit=200),
        symbols=MANY,
        bar=Bar(40, 150),
    ),
    Kind(
        f"latest of {MANY} symbols",
        _latest,
        lambda names: _url("/v1/latest", symbols=",".join(names)),
        symbols=MANY,
    ),
)


@dataclass
class Questions:
    """Draws questions; the same seed, the same questions."""

    shape: Shape
    chance: random.Random = field(default_factory=lambda: random.Random(5))  # noqa: S311

    def cold(self, kind: Kind) -> Iterator[str]:
        """Each (symbols, day) once, in random order."""
        days = [self.shape.start_us + day * DAY_US for day in range(1, self.shape.days)]
        if kind.symbols == 1:
            pairs = [([name], day) for name in self.shape.names for day in days]
            self.chance.shuffle(pairs)
            return (kind.ask(names, day) for names, day in pairs)
        return (kind.ask(self._some(kind), self.chance.choice(days)) for _ in itertools.count())

    def warm(self, kind: Kind) -> list[str]:
        """A set of questions to be asked again and again."""
        if kind.newest is None:
            return list(itertools.islice(self.cold(kind), _WARM_QUESTIONS))
        if kind.symbols == 1:
            return [kind.newest([name]) for name in self.shape.names]
        return [kind.newest(self._some(kind)) for _ in range(_WARM_QUESTIONS)]

    def _some(self, kind: Kind) -> list[str]:
        return self.chance.sample(self.shape.names, kind.symbols)


@dataclass(slots=True)
class Spent:
    """Milliseconds per answer with status 200; the rest by status."""

    ms: list[float] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    seconds: float = 0.0

    def figures(self, bar: Bar | None = None) -> dict[str, Any]:
        p50, p90, p99 = (float(np.percentile(self.ms, q)) for q in (50, 90, 99))
        found: dict[str, Any] = {
            "requests": len(self.ms), "p50_ms": round(p50, 1), "p90_ms": round(p90, 1),
            "p99_ms": round(p99, 1), "max_ms": round(max(self.ms), 1),
            "bytes": self.bytes // len(self.ms), "errors": self.refused,
        }  # fmt: skip
        if bar is not None:
            met = p50 <= bar.p50_ms and p99 <= bar.p99_ms and not self.refused
            found |= {"bar_p50_ms": bar.p50_ms, "bar_p99_ms": bar.p99_ms, "met": met}
        return found


class Client:
    """Asks the worker at `base` and notes how long it takes until the whole answer is here."""

    def __init__(self, http: aiohttp.ClientSession, base: str, key: str) -> None:
        self._http, self._base = http, base
        self._headers = {"X-API-Key": key}

    async def ask(self, url: str, spent: Spent) -> None:
        began_s = time.perf_counter()
        try:
            async with self._http.get(self._base + url, headers=self._headers) as answer:
                body, status = await answer.read(), str(answer.status)
        except (aiohttp.ClientError, TimeoutError) as exc:
            body, status = b"", type(exc).__name__
        if status == "200":
            spent.ms.append((time.perf_counter() - began_s) * 1_000)
            spent.bytes += len(body)
        else:
            spent.refused[status] = spent.refused.get(status, 0) + 1

    async def one_by_one(self, urls: Iterator[str], count: int) -> Spent:
        spent, began_s = Spent(), time.perf_counter()
        for url in itertools.islice(urls, count):
            await self.ask(url, spent)
        spent.seconds = time.perf_counter() - began_s
        if not spent.ms:
            raise K2Error(f"no question was answered: {spent.refused}")
        return spent

    async def together(self, urls: Sequence[str], clients: int, seconds: float) -> Spent:
        """`clients` at once, each asking its next question as soon as it has its answer."""
        spent, began_s = Spent(), time.perf_counter()
        chance = random.Random(9)  # noqa: S311

        async def one() -> None:
            while time.perf_counter() - began_s < seconds:
                await self.ask(chance.choice(urls), spent)

        await asyncio.gather(*(one() for _ in range(clients)))
        spent.seconds = time.perf_counter() - began_s
        return spent

    async def get(self, url: str) -> Any:
        async with self._http.get(self._base + url, headers=self._headers) as answer:
            answer.raise_for_status()
            return await answer.json() if "json" in answer.content_type else await answer.text()


LAG: Final = "k2_event_loop_delay_seconds"


@dataclass(frozen=True, slots=True)
class Seen:
    """What the worker has counted so far: frames, and timers of its event loop by lateness."""

    at_s: float
    frames: int
    late: Mapping[float, float]

    @classmethod
    async def now(cls, get: Callable[[str], Awaitable[Any]]) -> Seen:
        status, text = await get("/v1/status"), await get("/metrics")
        late = {}
        for line in text.splitlines():
            if line.startswith(f"{LAG}_bucket"):
                edge, count = line.split('le="')[1].split('"} ')
                late[float(edge)] = float(count)
        return cls(time.perf_counter(), status["data"]["source"]["frames"], late)

    def since(self, before: Seen) -> dict[str, Any]:
        """Rate of messages, and the share of late timers, between two looks."""
        late = {edge: count - before.late.get(edge, 0.0) for edge, count in self.late.items()}
        total = max(1.0, late.get(float("inf"), 0.0))
        p99 = next((edge for edge, count in sorted(late.items()) if count >= 0.99 * total), 0.0)
        above = 1 - late.get(0.01, total) / total
        return {
            "messages_per_s": round((self.frames - before.frames) / (self.at_s - before.at_s)),
            "loop_lag_p99_below_ms": p99 * 1_000,
            "loop_lag_above_10_ms": round(above, 4),
        }
