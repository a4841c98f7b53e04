"""The circuit breakers of one worker: around catalog, store, registry, REST histories, queries.

They keep a worker from asking again and again what does not answer. The writers of the lake are
watched, never refused: they have a back-off of their own, and rows wait for them. Their outcomes
open and close the circuit that readers and maintenance stand before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pyarrow as pa
import structlog
from requests.exceptions import RequestException

from k2 import metrics
from k2.breaker import Circuit, Limits, State
from k2.clock import Clock
from k2.errors import (
    K2Error,
    LakeError,
    Overloaded,
    RegistryUnavailableError,
    SourceError,
)

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Breaker:
    """One service's circuit, for threads and the event loop alike.

    A refused call raises `refusal` with `retry_after_s`, whole seconds.
    """

    def __init__(
        self, name: str, limits: Limits, clock: Clock, refusal: type[K2Error] = Overloaded
    ) -> None:
        self.name = name
        self._circuit = Circuit(limits)
        self._clock = clock
        self._refusal = refusal
        self._lock = threading.Lock()
        self._shown = State.CLOSED
        self.last_error = ""
        metrics.BREAKER_STATE.labels(name).set(State.CLOSED)
        metrics.BREAKER_IN_A_ROW.labels(name).set(0)
        for counter in (metrics.BREAKER_FAILURES, metrics.BREAKER_REFUSED, metrics.BREAKER_OPENED):
            # From the first call on: the growth of what was not there is unknown to Prometheus.
            counter.labels(name)

    @property
    def state(self) -> State:
        return self._tell(self._circuit.state)

    @property
    def ready(self) -> bool:
        """True when a call would be let through; it is not one."""
        return self._tell(lambda now_s: self._circuit.wait_s(now_s) <= 0)

    def enter(self) -> None:
        """Ask to go. Raises the refusal; else tell `succeeded`, `failed` or `dropped`."""
        if self._tell(self._circuit.enter):
            return
        metrics.BREAKER_REFUSED.labels(self.name).inc()
        wait_s = self._tell(self._circuit.wait_s)
        raise self._refusal(
            f"{self.name} has failed again and again and is left alone for {wait_s:.0f} s more; "
            f"the last error: {self.last_error or 'unknown'}",
            breaker=self.name,
            retry_after_s=max(1, round(wait_s)),
            status=503,
        )

    def succeeded(self) -> None:
        metrics.BREAKER_IN_A_ROW.labels(self.name).set(0)
        self._tell(self._circuit.succeeded)

    def failed(self, error: BaseException) -> None:
        self.last_error = f"{type(error).__name__}: {str(error)[:200]}"
        metrics.BREAKER_FAILURES.labels(self.name).inc()
        metrics.BREAKER_IN_A_ROW.labels(self.name).inc()
        self._tell(self._circuit.failed)

    def dropped(self) -> None:
        self._tell(self._circuit.dropped)

    @contextmanager
    def guarding(self, blames: Callable[[Exception], bool]) -> Iterator[None]:
        """Around one call. `blames`: whether an error is the service's.

        Any other tells nothing: the fault is the caller's, or the call was cancelled.
        """
        self.enter()
        try:
            yield
        except Exception as exc:
            if blames(exc):
                self.failed(exc)
            else:
                self.dropped()
            raise
        except BaseException:
            self.dropped()
            raise
        self.succeeded()

    def facts(self) -> dict[str, Any]:
        """For `/v1/status`."""
        return {
            "name": self.name,
            "state": self.state.name,
            "retry_after_s": round(self._tell(self._circuit.wait_s), 1),
            "last_error": self.last_error if self.state is not State.CLOSED else "",
        }

    def _tell(self, what: Callable[[float], T]) -> T:
        with self._lock:
            now_s = self._clock.monotonic_s()
            found = what(now_s)
            state, before = self._circuit.state(now_s), self._shown
            self._shown = state
        if state is not before:
            metrics.BREAKER_STATE.labels(self.name).set(state)
            if state is State.OPEN:
                metrics.BREAKER_OPENED.labels(self.name).inc()
            log.warning(
                "circuit_breaker", breaker=self.name, state=state.name, error=self.last_error
            )
        return found


class Breakers:
    """Those of one worker, by what they are around."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._limits, self._clock = limits, clock
        self._of: dict[str, Breaker] = {}
        self.catalog = self._named("catalog", LakeError)
        self.store = self._named("store", LakeError)
        self.registry = self._named("registry", RegistryUnavailableError)
        self.queries = self._named("query", Overloaded)

    def history(self, exchange: str) -> Breaker:
        """Around the REST history of an exchange."""
        return self._named(f"history_{exchange}", SourceError)

    def all(self) -> list[Breaker]:
        return list(self._of.values())

    @property
    def lake_ready(self) -> bool:
        """True when catalog and store may be asked for what can wait."""
        return self.catalog.ready and self.store.ready

    def watch_lake(self, error: BaseException | None) -> None:
        """What a writer of the lake met: None when a commit has landed."""
        if error is None:
            self.catalog.succeeded()
            self.store.succeeded()
        # The errors of requests are OSErrors as well.
        elif isinstance(error, OSError | pa.ArrowException) and not isinstance(
            error, RequestException
        ):
            self.store.failed(error)
        else:
            self.catalog.failed(error)

    def _named(self, name: str, refusal: type[K2Error]) -> Breaker:
        if name not in self._of:
            self._of[name] = Breaker(name, self._limits, self._clock, refusal)
        return self._of[name]
