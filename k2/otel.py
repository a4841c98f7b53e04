"""Spans made by OpenTelemetry; imported only where traces are on, for it takes 0.7 s."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, TraceFlags

from k2 import __version__
from k2.setting_operations import Tracing

#: Milliseconds a stop waits for spans to leave.
_FLUSH_MS: Final = 2_000
#: Seconds a batch of spans is tried for; a collector that is away must not hold up a stop.
_EXPORT_S: Final = 2.0
#: Characters of a W3C context's trace id, span id and flags.
_LENGTHS: Final = [32, 16, 2]

Attributes = Mapping[str, str | float]


class OtelSpans:
    """The tracer of the settings; spans leave in the background."""

    def __init__(self, settings: Tracing) -> None:
        resource = {
            "service.name": settings.service_name,
            "service.version": __version__,
            "service.instance.id": socket.gethostname(),
        }
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
            resource=Resource.create(resource),
            # The worker stops in its own order.
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(
            endpoint=f"{settings.otlp_endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_S
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("k2", __version__)

    def stop(self) -> None:
        """Send what is left, for a short while; blocking."""
        self._provider.force_flush(_FLUSH_MS)
        self._provider.shutdown()

    @contextmanager
    def span(self, name: str, parents: Sequence[bytes], attributes: Attributes) -> Iterator[bytes]:
        """See `k2.tracing.Spans.span`."""
        contexts = [one for one in map(parsed, parents) if one is not None]
        first = trace.set_span_in_context(NonRecordingSpan(contexts[0])) if contexts else None
        links = [Link(context) for context in contexts[1:]]
        with self._tracer.start_as_current_span(
            name, context=first, links=links, attributes=attributes
        ) as span:
            yield formatted(span.get_span_context())


def formatted(context: SpanContext) -> bytes:
    """W3C trace context of a span; b"" for one that is not sampled."""
    if not context.trace_flags.sampled:
        return b""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-01".encode()


def parsed(value: bytes) -> SpanContext | None:
    """The context of a header; None for what is none: a header is no reason to fail."""
    parts = value.decode("ascii", "replace").split("-")[1:4]
    if [len(part) for part in parts] != _LENGTHS:
        return None
    try:
        trace_id, span_id, flags = (int(part, 16) for part in parts)
    except ValueError:
        return None
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
    return context if context.is_valid else None
