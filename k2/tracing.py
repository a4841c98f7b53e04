"""Traces: frame batch → log → validated → lake and tail, and HTTP → DuckDB.

Off unless K2_TRACING_OTLP_ENDPOINT names a collector; then nothing of OpenTelemetry is imported and
a span costs one comparison. The context travels in a header of each record batch, not of each
record (W3C trace context). Several batches make one commit: its span continues the first one's
trace and is linked to the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Final

from k2.setting_operations import Tracing
from k2.transport.batch import Headers, LogBatch

if TYPE_CHECKING:
    from k2.otel import OtelSpans

HEADER: Final = "traceparent"
#: Contexts of one span; a commit after an outage may have thousands of batches.
_MOST: Final = 32
_NOTHING: Final[AbstractContextManager[bytes]] = nullcontext(b"")


class Spans:
    """Makes spans, or does nothing; one per process, as its metrics and its log are."""

    def __init__(self) -> None:
        self._made_by: OtelSpans | None = None

    @property
    def on(self) -> bool:
        return self._made_by is not None

    def start(self, settings: Tracing) -> None:
        """Send spans to the collector of the settings, if they name one."""
        if settings.otlp_endpoint:
            from k2.otel import OtelSpans  # noqa: PLC0415 - only who traces pays for the import

            self._made_by = OtelSpans(settings)

    def stop(self) -> None:
        """Send what is left, for a short while; blocking."""
        spans, self._made_by = self._made_by, None
        if spans is not None:
            spans.stop()

    def span(
        self, name: str, parents: Sequence[bytes] = (), **attributes: str | float
    ) -> AbstractContextManager[bytes]:
        """Around one piece of work; gives its context as a header's value, b"" when unsampled.

        `parents`: contexts it continues (the first) and is linked to (the others). Without any it
        is a child of the span it runs in, else the root of a new trace.
        """
        if self._made_by is None:
            return _NOTHING
        return self._made_by.span(name, parents[:_MOST], attributes)

    def follow(
        self, name: str, parents: Sequence[bytes], **attributes: str | float
    ) -> AbstractContextManager[bytes]:
        """As `span`, for what is no trace by itself: nothing without parents."""
        return self.span(name, parents, **attributes) if parents else _NOTHING


TRACING: Final = Spans()


def contexts_of(batch: LogBatch) -> list[bytes]:
    """The contexts of the record batches in `batch`, each once, in order."""
    if not TRACING.on:
        return []
    found = [
        value
        for _, headers in sorted(batch.headers.items())
        for name, value in headers
        if name == HEADER
    ]
    return list(dict.fromkeys(found))


def header(context: bytes) -> Headers:
    """What a record batch carries of a span's context; nothing when it is not sampled."""
    return ((HEADER, context),) if context else ()


def few(contexts: Iterable[bytes], more: Iterable[bytes]) -> list[bytes]:
    """`contexts` and what of `more` is new, as many as a span has."""
    return list(dict.fromkeys([*contexts, *more]))[:_MOST]
