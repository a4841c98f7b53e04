"""What a worker says of itself while log or lake do not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from k2 import metrics
from k2.degradation.levels import Level
from k2.errors import K2Error, LakeError, LogError
from k2.lake.vector import Place, Position, Vector
from k2.settings import load_settings
from k2.status import LagAge, StatusBoard
from k2.testing.clock import ManualClock
from k2.topics import BINANCE_TRADES

LOG = TP(BINANCE_TRADES.log, 0)
PLACE = Place("epoch", BINANCE_TRADES.validated, 0)


class Table:
    """A pinned table that is one commit behind until it is refreshed."""

    def __init__(self) -> None:
        self.stored = Vector.empty()
        self.newest = SimpleNamespace(files=[SimpleNamespace(bytes=3), SimpleNamespace(bytes=4)])
        self.error: K2Error | None = None

    def vector(self) -> Vector:
        return self.stored

    def snapshots(self) -> list[Any]:
        return [self.newest]

    def refresh(self) -> None:
        if self.error is not None:
            raise self.error
        self.stored = Vector({PLACE: Position(5, 4)})


class Worker:
    """The parts a status board looks at: one partition of a log, read up to `position`."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.position, self.bounds = 5, (0, 5)
        self.error: K2Error | None = None
        self.app = SimpleNamespace(
            transport=SimpleNamespace(bounds=self._bounds),
            consumer=SimpleNamespace(assignment=lambda: {LOG}),
        )
        self.settings = SimpleNamespace(topics=[BINANCE_TRADES])
        self.source = SimpleNamespace(
            queued=0,
            in_flight=0,
            records_in_flight=0,
            counts=SimpleNamespace(frames=0, trades=0, quotes=0, agg_trades=0),
            observe=lambda: None,
        )
        self.validate = SimpleNamespace(
            in_flight=0,
            next_offsets=lambda: {LOG: self.position},
            counts=SimpleNamespace(records=0),
        )
        self.sink = SimpleNamespace(
            pending_rows=0,
            read_to=dict,
            counts=dict,
            vectors=lambda: {"trades": Vector({PLACE: Position(5, 4)})},
        )
        self.shed = SimpleNamespace(pending=dict)
        self.table = Table()
        self.lake = SimpleNamespace(pinned={"trades": self.table})
        self.settings = load_settings()
        self.at_level = Level.NORMAL
        self.hot = SimpleNamespace(observe=lambda: None, read_to=lambda: self.tail_behind)
        self.tail_behind = {"trades": 0}

    def level(self) -> int:
        return self.at_level

    async def _bounds(self, tps: Collection[TP]) -> dict[TP, tuple[int, int]]:
        if self.error is not None:
            raise self.error
        return dict.fromkeys(tps, self.bounds)


@pytest.fixture
def worker() -> Worker:
    return Worker(ManualClock())


@pytest.fixture
def board(worker: Worker) -> StatusBoard:
    made: Any = worker
    return StatusBoard(made)


async def test_everything_read_and_stored_is_drained(board: StatusBoard) -> None:
    await board.look()
    assert (board.drained, board.lag) == (True, 0)


async def test_a_log_that_does_not_answer_is_said_once_and_is_not_drained(
    worker: Worker, board: StatusBoard
) -> None:
    await board.look()
    worker.error = LogError("Kafka at kafka:9092 did not answer: timed out", servers="kafka:9092")
    with capture_logs() as said:
        await board.look()
        await board.look()
    (line,) = said
    assert line["event"] == "status_unknown"
    assert line["log_level"] == "warning"
    assert "kafka:9092 did not answer" in line["error"]
    assert (board.drained, board.read_through) == (False, False)
    worker.error = None
    await board.look()
    assert board.drained


async def test_a_lake_that_cannot_show_the_commits_is_not_drained(
    worker: Worker, board: StatusBoard
) -> None:
    worker.table.error = LakeError("the catalog did not answer")
    with capture_logs() as said:
        await board.look()
    assert [line["error"] for line in said] == ["the catalog did not answer"]
    assert not board.drained
    worker.table.error = None
    await board.look()
    assert board.drained


async def test_a_defect_is_not_taken_for_an_outage(worker: Worker, board: StatusBoard) -> None:
    worker.validate.next_offsets = lambda: {LOG: None}
    with pytest.raises(TypeError):
        await asyncio.wait_for(board.run(), 10)


@pytest.mark.parametrize(
    ("position", "bounds", "lag"),
    [
        (5, (0, 9), 4),
        (0, (7, 9), 2),  # what retention deleted is not there to be read
        (9, (9, 9), 0),
        (12, (0, 9), 0),  # an end asked for just before
    ],
)
async def test_lag_is_what_is_still_to_be_read(
    worker: Worker, board: StatusBoard, position: int, bounds: tuple[int, int], lag: int
) -> None:
    worker.position, worker.bounds = position, bounds
    await board.look()
    assert board.lag == lag


async def test_the_lag_of_a_partition_that_left_is_not_shown_any_more(
    board: StatusBoard, worker: Worker
) -> None:
    def shown() -> list[float | None]:
        labels = {"topic": LOG.topic, "partition": str(LOG.partition)}
        names = ("lag_messages", "lag_seconds", "offset")
        return [REGISTRY.get_sample_value(f"k2_kafka_consumer_{name}", labels) for name in names]

    worker.position = 3
    await board.look()
    await worker.clock.advance(4.0)
    await board.look()
    assert shown() == [2, 4.0, 3]
    worker.app.consumer.assignment = set
    await board.look()
    await board.look()
    assert shown() == [None] * 3


@given(st.lists(st.tuples(st.floats(0.5, 5), st.integers(0, 50), st.floats(0, 1)), max_size=60))
def test_the_lag_in_seconds_is_the_age_of_the_oldest_record_not_read(
    looks: list[tuple[float, int, float]],
) -> None:
    age, now_s, position, end = LagAge(), 0.0, 0, 0
    seen_s: dict[int, float] = {}
    for passed_s, new, part in looks:
        now_s += passed_s
        seen_s |= dict.fromkeys(range(end, end + new), now_s)
        end += new
        position += int((end - position) * part)
        wanted = now_s - seen_s[position] if position < end else 0.0
        assert age.note(position, end, now_s) == pytest.approx(wanted)


def test_the_age_of_lag_that_never_ends_takes_little_memory() -> None:
    age = LagAge()
    for second in range(5_000):
        assert age.note(0, second + 1, float(second)) == second
    assert len(age._ends) <= 601
    assert age.note(5_000, 5_000, 5_000.0) == 0.0


async def test_the_size_of_a_table_is_shown_anew_with_each_snapshot(
    board: StatusBoard, worker: Worker
) -> None:
    def shown() -> float | None:
        return REGISTRY.get_sample_value("k2_iceberg_table_size_bytes", {"table": "trades"})

    await board.look()
    assert shown() == 7
    worker.table.newest = SimpleNamespace(files=[SimpleNamespace(bytes=9)])
    await board.look()
    assert shown() == 9


async def test_failures_count_from_zero(worker: Worker) -> None:
    counters = (metrics.SHED_LOST, metrics.MAINTENANCE_FAILURES, metrics.CONSUMER_ERRORS)
    for counter in counters:
        counter.clear()
    made: Any = worker
    board = StatusBoard(made)
    errors = {"error_type": "LogError"}
    for name, labels in (
        ("k2_messages_shed_lost", {"topic": BINANCE_TRADES.log}),
        ("k2_maintenance_failures", {"table": "trades"}),
        ("k2_consumer_errors", errors),
    ):
        assert REGISTRY.get_sample_value(f"{name}_total", labels) == 0
    worker.error = LogError("Kafka did not answer")
    await board.look()
    assert REGISTRY.get_sample_value("k2_consumer_errors_total", errors) == 1


async def test_sessions_that_begin_to_give_way_are_counted(
    board: StatusBoard, worker: Worker
) -> None:
    def shown() -> float:
        return REGISTRY.get_sample_value("k2_backpressure_events_total") or 0.0

    before = shown()
    for behind in (0, 2_000_000, 3_000_000, 0, 2_000_000):
        worker.bounds = (0, worker.position + behind)
        await board.look()
    assert shown() == before + 2


async def test_what_waits_before_the_log_counts_as_well(worker: Worker, board: StatusBoard) -> None:
    worker.bounds = (0, worker.position + 7)
    worker.source.queued, worker.source.records_in_flight = 200, 3_000
    await board.look()
    assert (board.lag, board.waiting) == (7, 3_207)


async def test_sessions_give_way_when_shedding_is_not_enough(
    worker: Worker, board: StatusBoard
) -> None:
    await board.look()
    assert not board.overrun
    worker.bounds = (0, worker.position + 20_000)
    await board.look()
    assert not board.overrun, "the ladder comes first"
    worker.bounds = (0, worker.position + worker.settings.degradation.lag_aggressive)
    await board.look()
    assert board.overrun, "its own lag is known before the level that it leads to"
    worker.validate.counts.records += 1_000
    assert not board.overrun, "what was judged since the last look counts"
    worker.source.counts.trades += 1_000
    assert board.overrun, "and so does what its sessions have brought"
    worker.bounds = (0, worker.position + worker.settings.degradation.lag_aggressive - 500)
    await board.look()
    assert not board.overrun
    worker.source.records_in_flight = 1_000
    await board.look()
    assert board.overrun, "also what the log does not have yet"
    worker.source.records_in_flight = 0
    worker.bounds = (0, worker.position + 20_000)
    await board.look()
    worker.at_level = Level.AGGRESSIVE
    assert board.overrun
    worker.bounds = (0, worker.position)
    await board.look()
    assert not board.overrun
    worker.tail_behind["trades"] = 20_000
    await board.look()
    assert board.overrun, "what queries do not see yet is as late"
    degradation = worker.settings.degradation.model_copy(update={"source_yields": False})
    worker.settings = worker.settings.model_copy(update={"degradation": degradation})
    assert not board.overrun
