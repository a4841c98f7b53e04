"""Faust tables: written with their changelog, there again after a restart."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import faust
import pytest
from aiokafka.errors import OutOfOrderSequenceNumber
from faust.types import TP
from structlog.testing import capture_logs

from k2.errors import LogError
from k2.settings import Settings
from k2.steps.tables import FaustCheckpoints, SharedTable
from k2.transport.registry import registry
from tables.continuity import continuity_table
from tables.degradation import degradation_table
from tests.local_log.driver import fill_disk
from tests.steps.parts import QUOTES, TRADES, settings_in
from tests.transport.drivers import running

HOME = TP(TRADES.log, 1)


@asynccontextmanager
async def checkpoints(settings: Settings) -> AsyncIterator[FaustCheckpoints]:
    """A worker with recovered checkpoints on the embedded log."""
    async with recovered(settings, lambda app: continuity_table(app, 4)) as table:
        yield FaustCheckpoints(table)


@asynccontextmanager
async def recovered(settings: Settings, made: Callable[[Any], Any]) -> AsyncIterator[Any]:
    """A worker with a recovered table on the embedded log."""
    directory = settings.core.data_dir.absolute()
    directory.mkdir(exist_ok=True)
    app = faust.App(
        "tables",
        broker=f"local://{directory / 'log'}",
        datadir=str(directory / "faust"),
        web_enabled=False,
        topic_disable_leader=True,
        topic_partitions=4,
        store="memory://",
    )
    registry(app).kafka = settings.kafka
    table = made(app)

    @app.agent(app.topic("input", partitions=4, internal=True))
    async def agent(stream: Any) -> None:
        async for _ in stream:
            pass

    async with running(app):
        yield table


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    return settings_in(tmp_path / "data", monkeypatch, KAFKA_PARTITIONS=4, KAFKA_FSYNC_S=3_600)


async def test_entries_are_there_again_after_a_restart(few: Settings) -> None:
    other = TP(QUOTES.log, 1)
    async with checkpoints(few) as table:
        assert table.load(HOME) == {}
        await table.store(HOME, [(b"a", b"1"), (b"b", b"2"), (b"a", b"3")])
        await table.store(other, [(b"a", b"other topic")])
        await table.store(TP(TRADES.log, 11 % 4), [(b"x", b"another partition")])
        assert table.load(HOME) == {b"a": b"3", b"b": b"2"}
    async with checkpoints(few) as table:
        assert table.load(HOME) == {b"a": b"3", b"b": b"2"}
        assert table.load(other) == {b"a": b"other topic"}
        await table.store(HOME, [(b"b", None), (b"c", b"4")])
        assert table.load(HOME) == {b"a": b"3", b"c": b"4"}
    async with checkpoints(few) as table:
        assert table.load(HOME) == {b"a": b"3", b"c": b"4"}


async def test_a_partition_is_not_mistaken_for_one_that_begins_alike(few: Settings) -> None:
    async with checkpoints(few) as table:
        await table.store(TP(TRADES.log, 1), [(b"a", b"one")])
        assert table.load(TP(TRADES.log, 11)) == {}
        assert table.load(TP(TRADES.log[:-1], 1)) == {}


async def test_entries_go_to_the_changelog_partition_of_their_own(few: Settings) -> None:
    async with checkpoints(few) as table:
        await table.store(TP(TRADES.log, 3), [(b"a", b"1")])
        app = table._table.app
        name = table._table.changelog_topic.get_topic_name()
        ends = await app.transport.bounds([TP(name, partition) for partition in range(4)])
        assert [ends[TP(name, partition)][1] for partition in range(4)] == [0, 0, 0, 1]


async def test_what_the_log_refused_is_written_again_and_no_failure_is_lost(
    few: Settings, lost: list[dict[str, Any]]
) -> None:
    broken: list[BaseException] = []
    async with recovered(few, degradation_table) as table:
        shared = SharedTable(table, broken.append)
        shared["workers"] = {"by": "w1"}
        await table.app.producer.flush()
        with capture_logs() as logs, pytest.MonkeyPatch.context() as patch:
            fill_disk(patch)
            for number in (1, 2):
                shared["level"] = {"number": number}
                await table.app.producer.flush()
            shared.resend()
            await table.app.producer.flush()
        assert shared.get("level") == {"number": 2}
        told = [entry for entry in logs if entry["event"] == "entry_not_shared"]
        assert [(entry["key"], entry["error"]) for entry in told] == [
            ("level", "the disk is full")
        ] * 3
        shared.resend()
        shared.resend()
        await table.app.producer.flush()
        tp = TP(table.changelog_topic.get_topic_name(), 0)
        assert (await table.app.transport.bounds([tp]))[tp][1] == 2, "sent again, and once"
    async with recovered(few, degradation_table) as table:
        shared = SharedTable(table, broken.append)
        assert (shared.get("level"), shared.get("workers")) == ({"number": 2}, {"by": "w1"})
        assert shared.get("history") is None
    gc.collect()
    assert lost == broken == []


class Changelog:
    """A global table whose log answers when it is told to."""

    name = "degradation"

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.sent: list[tuple[Any, asyncio.Future[Any]]] = []

    def send_changelog(self, partition: int, key: str, value: Any) -> asyncio.Future[Any]:
        assert partition == 0
        self.sent.append((value, asyncio.get_running_loop().create_future()))
        return self.sent[-1][1]

    async def answer(self, at: int, exc: Exception | None = None) -> None:
        future = self.sent[at][1]
        future.set_result(None) if exc is None else future.set_exception(exc)
        await asyncio.sleep(0)

    @property
    def values(self) -> list[Any]:
        return [value for value, _ in self.sent]


async def test_an_older_entry_read_back_is_not_taken_for_the_one_that_waits() -> None:
    table = Changelog()
    shared = SharedTable(table, lambda _: None)
    shared["level"] = "first"
    shared["level"] = "second"
    await table.answer(0)
    await table.answer(1, LogError("the disk is full"))
    table.data["level"] = "first"  # from the changelog
    assert shared.get("level") == "second"
    shared.resend()
    shared.resend()
    assert table.values == ["first", "second", "second"]
    await table.answer(2)
    assert shared.get("level") == table.data["level"] == "second"
    shared.resend()
    assert len(table.sent) == 3


async def test_a_newer_entry_goes_before_one_that_was_refused() -> None:
    table = Changelog()
    shared = SharedTable(table, lambda _: None)
    shared["override"] = {"level": "SOFT"}
    shared["override"] = None
    await table.answer(0, LogError("the disk is full"))
    shared.resend()
    assert table.values == [{"level": "SOFT"}, None]
    await table.answer(1)
    assert table.data == {"override": None}


async def test_what_another_has_to_write_is_forgotten() -> None:
    table = Changelog()
    shared = SharedTable(table, lambda _: None)
    table.data["level"] = "theirs"
    shared["level"], shared["workers"] = "mine", "mine"
    await table.answer(0, LogError("the disk is full"))
    shared.forget()
    await table.answer(1)
    shared.resend()
    assert (shared.get("level"), shared.get("workers")) == ("theirs", None)
    assert len(table.sent) == 2


async def test_a_log_that_takes_nothing_more_is_told_of() -> None:
    table, broken = Changelog(), []
    shared = SharedTable(table, broken.append)
    shared["level"] = 1
    await table.answer(0, error := OutOfOrderSequenceNumber())
    assert broken == [error]
