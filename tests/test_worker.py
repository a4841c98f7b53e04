"""How a worker stops and hands over: in order, in time, and without claiming more than is so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP
from structlog.testing import capture_logs

import k2.worker
from k2.errors import K2Error, LakeError, LogError, StaleWriterError
from k2.faust_app import K2App
from k2.settings import Settings
from k2.steps.tables import Tables
from k2.worker import Worker
from tests.steps.parts import settings_in

LEAVING = frozenset({TP("market.trades.validated", 3)})

STAYING = TP("market.trades.validated", 4)


class Part:
    """Notes what it is asked for in `calls`; `fails` and `hangs` name what does not work."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self._name = name
        self._calls = calls
        self.fails: dict[str, BaseException] = {}
        self.hangs: set[str] = set()

    def __getattr__(self, method: str) -> Callable[..., Awaitable[None]]:
        async def call(*_: Any) -> None:
            self._calls.append(f"{self._name}.{method}")
            if method in self.hangs:
                await asyncio.Event().wait()
            if method in self.fails:
                raise self.fails[method]

        return call


class Made:
    """A worker whose parts are doubles."""

    def __init__(self, settings: Settings) -> None:
        self.calls: list[str] = []
        names = ("source", "validate", "shed", "sink", "candles", "hot", "transport")
        parts = {name: Part(name, self.calls) for name in names}
        self.source, self.validate, self.sink = parts["source"], parts["validate"], parts["sink"]
        self.transport = parts["transport"]
        self.app: Any = SimpleNamespace(
            crashed=False,
            transport=self.transport,
            consumer=SimpleNamespace(stop_flow=lambda: self.calls.append("consumer.stop_flow")),
        )
        self.worker = Worker(self.app, settings, Tables(None, None, None, None))
        self.status = SimpleNamespace(read_through=True, refresh=self._refresh)
        self.refreshing: K2Error | None = None
        self.lake = SimpleNamespace(
            give_up=lambda: self.calls.append("lake.give_up"),
            close=lambda: self.calls.append("lake.close"),
        )
        self.worker.maintain = SimpleNamespace(stop=lambda: None)  # type: ignore[assignment]
        for name, part in {**parts, "status": self.status, "lake": self.lake}.items():
            setattr(self.worker, name, part)
        self.source.__dict__.update(queued=0, in_flight=0)
        self.validate.__dict__.update(in_flight=0)
        self.kept: list[set[TP]] = []
        self.sink.__dict__.update(
            pending_rows=7, read_to=lambda: dict.fromkeys([*LEAVING, STAYING], 0)
        )
        self.sink.__dict__.update(keep=self.kept.append)
        parts["candles"].__dict__.update(keep=lambda _staying: None, read_to=dict)
        self.worker.ready = self.worker._opened = True

    async def _refresh(self) -> None:
        if self.refreshing is not None:
            raise self.refreshing


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """On a Kafka, so that others' sources fill our partitions too."""
    return Made(settings_in(tmp_path, monkeypatch, KAFKA_BOOTSTRAP_SERVERS="kafka:9092"))


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    return Made(settings_in(tmp_path, monkeypatch))


async def test_a_stop_waits_only_for_what_is_its_own(made: Made) -> None:
    made.status.read_through = False  # other workers' sources write on and on
    with capture_logs() as said:
        await made.worker.drain()
    assert [line["event"] for line in said] == ["worker_drained"]
    assert made.calls == [
        "source.stop",
        "consumer.stop_flow",
        "validate.checkpoint_all",
        "shed.store",
        "sink.flush",
        "candles.flush",
    ]


async def test_a_stop_waits_until_the_log_has_what_was_received(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(k2.worker, "DRAIN_S", 0.01)
    made.validate.__dict__.update(in_flight=1)
    with capture_logs() as said:
        await made.worker.drain()
    assert [line["event"] for line in said] == ["drain_incomplete"]
    assert "sink.flush" not in made.calls


async def test_the_embedded_log_is_read_to_its_end(
    embedded: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(k2.worker, "DRAIN_S", 0.01)
    embedded.status.read_through = False
    await embedded.worker.drain()
    assert "sink.flush" not in embedded.calls


async def test_a_log_or_lake_that_fails_a_drain_is_told_and_the_stop_goes_on(
    embedded: Made,
) -> None:
    embedded.refreshing = LogError("the log is away")
    with capture_logs() as said:
        await embedded.worker.drain()
    assert [(line["event"], line["error"]) for line in said] == [
        ("drain_incomplete", "the log is away")
    ]


async def test_a_lake_that_hangs_is_given_up_in_time(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(k2.worker, "DRAIN_S", 0.01)
    made.sink.hangs.add("flush")
    with capture_logs() as said:
        await made.worker.drain()
    assert [(line["event"], line["pending_rows"]) for line in said] == [("drain_incomplete", 7)]


@pytest.mark.parametrize("by_faust", [True, False])
async def test_a_crashed_worker_stores_nothing_and_claims_nothing(
    made: Made, *, by_faust: bool
) -> None:
    if by_faust:
        made.app.crashed = True
    else:
        made.worker.failure = RuntimeError("a defect")
    with capture_logs() as said:
        await made.worker.drain()
        await made.worker._before_revoke(LEAVING)
        await made.worker.close()
    assert said == []
    assert not {
        call for call in made.calls if call.startswith(("sink", "candles", "validate", "shed"))
    }
    assert made.calls[-2:] == ["lake.close", "transport.close"]


@pytest.mark.parametrize("error", [LakeError("the lake is away"), StaleWriterError("it is theirs")])
async def test_a_handover_the_lake_refuses_is_told_and_goes_on(
    made: Made, error: LakeError
) -> None:
    made.sink.fails["revoke"] = error
    with capture_logs() as said:
        await made.worker._before_revoke(LEAVING)
    assert [(line["event"], line["error"]) for line in said] == [
        ("handover_incomplete", error.message)
    ]


async def test_a_handover_has_an_end(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(k2.worker, "HANDOVER_S", 0.01)
    made.validate.hangs.add("checkpoint_all")
    with capture_logs() as said:
        await made.worker._before_revoke(LEAVING)
    assert [line["event"] for line in said] == ["handover_incomplete"]
    assert made.kept == [{STAYING}], "what leaves is forgotten, stored or not"


async def test_a_checkpoint_the_log_refuses_is_no_handover(made: Made) -> None:
    """State would pass its outputs: the worker must not go on."""
    made.validate.fails["checkpoint_all"] = LogError("refused")
    with pytest.raises(LogError, match="refused"):
        await made.worker._before_revoke(LEAVING)


async def test_every_part_is_closed_though_one_fails(made: Made) -> None:
    made.sink.fails["stop"] = LakeError("the lake is away")
    with capture_logs() as said:
        await made.worker.close()
    assert [(line["event"], line["part"]) for line in said] == [("part_not_closed", "sink")]
    assert made.calls == [
        "lake.give_up",
        "sink.stop",
        "candles.stop",
        "hot.close",
        "lake.close",
        "transport.close",
    ]


async def test_a_failure_while_closing_is_told_but_is_no_crash(made: Made) -> None:
    await made.worker.close()
    with capture_logs() as said:
        made.worker.crash(LakeError("the lake is away"))
    assert [line["event"] for line in said] == ["failed_while_closing"]
    assert made.worker.failure is None


async def test_a_drain_that_raises_leaves_neither_app_nor_parts_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = K2App.of(settings_in(tmp_path, monkeypatch))
    calls: list[str] = []
    part = Part("worker", calls)
    part.fails["drain"] = RuntimeError("a defect")
    part.__dict__.update(going=lambda: calls.append("worker.going"))
    app.worker = part  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="a defect"):
        await app.stop()
    assert calls == ["worker.drain", "worker.going", "worker.close"]
    assert app.should_stop
