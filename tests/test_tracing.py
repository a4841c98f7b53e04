"""One trace from the frame to the commit, seen by a real OTLP receiver; nothing when it is off."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from k2.otel import formatted, parsed
from k2.settings import load_settings
from k2.tracing import TRACING, contexts_of, few, header
from k2.transport.batch import LogBatch
from tests.e2e.harness import Stack, trade_ids

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass
class Span:
    name: str
    trace: str
    ident: str
    parent: str
    links: list[str]
    attributes: dict[str, str]


@dataclass
class Collector:
    """What came by OTLP over HTTP."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        if request.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.spans += [
                    Span(
                        span.name,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        [link.trace_id.hex() for link in span.links],
                        {a.key: str(a.value.string_value) for a in span.attributes},
                    )
                    for span in scope.spans
                ]
        return web.Response(content_type="application/x-protobuf", body=b"")

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector, app = Collector(), web.Application()
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    collector.url = "http://{}:{}".format(*runner.addresses[0])
    try:
        yield collector
    finally:
        await runner.cleanup()


def ancestry(collector: Collector, span: Span) -> list[str]:
    """Names from `span` up to its root."""
    by_id = {one.ident: one for one in collector.spans}
    names = [span.name]
    while span.parent in by_id:
        span = by_id[span.parent]
        names.append(span.name)
    return names


@pytest.mark.timeout(120)
async def test_one_trace_leads_from_the_frame_to_the_commit(tmp_path: Path) -> None:
    async with collecting() as collector, Stack(tmp_path) as stack:
        await stack.start_exchange("simulate", "--symbols", "BTCUSDT", "--rate", "200")
        await stack.start_worker(
            K2_TRACING_OTLP_ENDPOINT=collector.url, K2_TRACING_SAMPLE_RATIO="1"
        )
        await stack.until("rows are stored", lambda s: s["lake"]["trades"] > 50)
        status, _ = await stack.request(
            "GET",
            "/v1/trades",
            headers={"X-API-Key": "k2-dev-api-key-2026", "traceparent": CALLER},
        )
        assert status == 200
        await stack.stop_exchange()
        await stack.until("drained", lambda s: s["drained"])
        assert await stack.stop_worker() == 0, "spans leave before it ends"
    commits = [one for one in collector.named("k2.commit") if one.attributes["table"] == "trades"]
    whole = [one for one in commits if ancestry(collector, one)[-1] == "k2.source"]
    assert whole, [ancestry(collector, one) for one in commits]
    assert ancestry(collector, whole[0]) == ["k2.commit", "k2.validate", "k2.source"]
    (one_trace,) = {
        span.trace
        for span in collector.spans
        if span.trace == whole[0].trace and span.name in ("k2.source", "k2.validate", "k2.commit")
    }
    known = {span.trace for span in collector.named("k2.source")}
    assert one_trace in known
    shown = [one for one in collector.named("k2.tail") if one_trace in (one.trace, *one.links)]
    assert shown, "the trace also tells when queries could see the rows"
    assert ancestry(collector, shown[0]) == ["k2.tail", "k2.validate", "k2.source"]
    assert {one.trace for one in collector.named("k2.tail")} <= known
    linked = {trace for commit in commits for trace in commit.links}
    assert linked <= known
    (request,) = collector.named("GET /v1/trades")
    assert (request.trace, request.parent) == tuple(CALLER.split("-")[1:3])
    (query,) = [one for one in collector.named("k2.query") if one.parent == request.ident]
    assert query.trace == request.trace
    ids = trade_ids(tmp_path / "data")
    assert len(ids) == len(set(ids)), "headers of traces change nothing"


@pytest.mark.timeout(120)
async def test_a_collector_that_is_away_disturbs_nothing(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        await stack.start_exchange("simulate", "--symbols", "BTCUSDT", "--rate", "200")
        await stack.start_worker(
            K2_TRACING_OTLP_ENDPOINT="http://127.0.0.1:9", K2_TRACING_SAMPLE_RATIO="1"
        )
        await stack.until("rows are stored", lambda s: s["lake"]["trades"] > 50)
        await stack.stop_exchange()
        await stack.until("drained", lambda s: s["drained"])
        assert await stack.stop_worker() == 0


def test_off_by_default_and_then_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("K2_TRACING_OTLP_ENDPOINT", raising=False)
    TRACING.start(load_settings().tracing)
    assert not TRACING.on
    with TRACING.span("anything", (CALLER.encode(),), records=1) as context:
        assert context == b""
    with TRACING.follow("what has no trace to be part of", ()) as context:
        assert context == b""
    assert header(context) == ()
    code = "import k2.worker, sys; sys.exit('opentelemetry.sdk' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def batch(headers: dict[int, tuple[tuple[str, bytes], ...]]) -> LogBatch:
    offsets = np.arange(10, dtype=np.int64)
    empty: list[bytes | None] = [None] * 10
    return LogBatch("t", 0, offsets, offsets, empty, empty, headers, 0, 9, 10)


def test_contexts_of_a_batch_each_once_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = b"00-1", b"00-2"
    made = batch({5: header(two), 0: (("k2-session", b"s"), *header(one)), 7: header(one)})
    assert contexts_of(made) == []
    monkeypatch.setattr(TRACING, "_made_by", object())
    assert contexts_of(made) == [one, two]
    assert few([one], [two, one]) == [one, two]
    assert len(few([], (str(n).encode() for n in range(100)))) == 32


@given(st.binary(max_size=80))
def test_no_header_is_a_reason_to_fail(value: bytes) -> None:
    found = parsed(value)
    assert found is None or found.is_valid


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.sampled_from(["00", "01"]))
def test_a_context_comes_back_as_it_went(trace: int, span: int, flags: str) -> None:
    text = f"00-{trace:032x}-{span:016x}-{flags}".encode()
    found = parsed(text)
    assert found is not None
    assert (found.trace_id, found.span_id) == (trace, span)
    assert formatted(found) == (text if flags == "01" else b"")
