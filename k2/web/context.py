"""What the HTTP interface needs from the rest of K2, injected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from aiohttp import web

from k2.clock import SYSTEM_CLOCK
from k2.degradation.levels import Level
from k2.degradation.override import Override
from k2.query.engine import QueryEngine
from k2.query.enrich import Enrichment
from k2.query.kept import KeptAnswers
from k2.web.keys import KeyRing
from k2.web.rates import Rates

Health = Literal["healthy", "degraded", "unhealthy"]


@dataclass(frozen=True, slots=True)
class Check:
    """One dependency as seen now. Only `unhealthy` makes the worker not ready."""

    name: str
    status: Health
    message: str = ""
    latency_ms: float | None = None


@dataclass(frozen=True, slots=True)
class RequestDone:
    """What a request was, for metrics. `route`: its pattern, so that labels stay few."""

    method: str
    route: str
    status: int
    duration_s: float
    rows: int


class DegradationDesk(Protocol):
    """The level all workers agree on (`k2.steps.control.ControlStep`)."""

    @property
    def level(self) -> Level: ...

    def facts(self) -> Mapping[str, Any]: ...

    def history(self) -> Sequence[Mapping[str, Any]]: ...

    async def set_override(self, override: Override | None) -> None:
        """Hold a level, or let it go. Raises `LogError` when the log does not take it."""


@dataclass(frozen=True, slots=True)
class KeptPage:
    """`rows` rows that were made JSON, and what else their answer says."""

    data: bytes
    rows: int
    pagination: Mapping[str, Any]
    files_read: int | None


#: Of answers about the past that may be asked for again.
_KEPT_BYTES: Final = 64 * 1024 * 1024


def _no_shed() -> Mapping[str, Any]:
    return {}


def _nothing(_done: RequestDone) -> None:
    return None


@dataclass(frozen=True, slots=True)
class ApiContext:
    """Everything a handler uses.

    - `keys`: whose X-API-Key is known; `rates`: how often each has asked.
    - `cors_origins`: origins whose scripts browsers let ask.
    - `status`: facts for /v1/status (level, roles, lag, …), JSON-ready; must not block.
    - `checks`: dependencies for /health; must not block.
    - `level`: degradation level, 0..4; at 4 the data endpoints answer 503.
    - `max_rows`: most rows of one SQL answer; `max_body_bytes`: largest request body.
    - `feeds`: the exchange sessions of this worker, for /v1/feeds; must not block.
    - `workers`: summaries of all workers, this one's first (`k2.steps.roster`); must not block.
    - `operations_open`: `/faust/…` without a key (`/`, `/health…` and `/metrics` always are).
    - `answers_queries`: False on a worker without hot rows, whose answers would lack them.
    - `observe`: called once per request.
    - `degradation`: the level and what holds it; `shed`: what is put off, JSON-ready.
    - `now_us`: the wall clock.
    - `enrichment`: what instruments are, for answers that ask for it.
    - `kept`: answers whose rows can be proven to be the same still.
    - `exclude_conditions`: trades with one of these make no candle, unless a question says else.
    """

    queries: QueryEngine
    keys: KeyRing
    version: str
    status: Callable[[], Mapping[str, Any]]
    checks: Callable[[], Sequence[Check]]
    level: Callable[[], int]
    max_rows: int
    max_body_bytes: int
    feeds: Callable[[], Sequence[Mapping[str, Any]]] = tuple
    workers: Callable[[], Sequence[Mapping[str, Any]]] = tuple
    quality: Callable[[], Sequence[Mapping[str, Any]]] = tuple
    operations_open: bool = False
    answers_queries: bool = True
    observe: Callable[[RequestDone], None] = _nothing
    degradation: DegradationDesk | None = None
    shed: Callable[[], Mapping[str, Any]] = _no_shed
    now_us: Callable[[], int] = SYSTEM_CLOCK.now_us
    cors_origins: frozenset[str] = frozenset()
    exclude_conditions: frozenset[str] = frozenset()
    enrichment: Enrichment | None = None
    kept: KeptAnswers[KeptPage] = field(default_factory=lambda: KeptAnswers(_KEPT_BYTES))
    rates: Rates = field(default_factory=lambda: Rates(SYSTEM_CLOCK.monotonic_s))


CONTEXT = web.AppKey("k2_context", ApiContext)
