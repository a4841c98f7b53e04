"""What steps show of themselves: failures from 0 on, and sessions only where they run."""

from __future__ import annotations

from prometheus_client import REGISTRY

from k2 import metrics
from k2.clock import SYSTEM_CLOCK
from k2.codecs import Codecs
from k2.steps.publish import Partitioner, Publisher
from k2.testing.clock import ManualClock
from k2.testing.log import MemoryLog
from tests.exchange.feeds import ListFeed, serving, trade
from tests.steps.parts import TRADES
from tests.steps.sink_bench import Bench, bench
from tests.steps.test_source import source, until

__all__ = ["bench"]


def shown(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def test_refused_batches_count_from_zero(
    codecs: Codecs, log: MemoryLog, clock: ManualClock
) -> None:
    """The first one ends the worker: a series that begins at 1 has no growth to Prometheus."""
    metrics.PRODUCE_ERRORS.clear()
    Publisher(TRADES, log, codecs.of(TRADES.log), Partitioner(16), clock, 500_000)
    for error in ("LogError", "cancelled"):
        labels = {"topic": TRADES.log, "error_type": error}
        assert shown("k2_kafka_produce_errors_total", **labels) == 0


def test_failed_commits_count_from_zero(bench: Bench) -> None:
    metrics.COMMIT_FAILURES.clear()
    metrics.WRITE_ERRORS.clear()
    bench.restart()
    for table in bench.lake.writers:
        assert shown("k2_iceberg_commit_failures_total", table=table) == 0
        for error in ("LakeError", "CommitConflictError", "StaleWriterError"):
            labels = {"table": table, "error_type": error}
            assert shown("k2_iceberg_write_errors_total", **labels) == 0


async def test_a_session_that_moved_away_is_not_shown_here_any_more(
    codecs: Codecs, log: MemoryLog
) -> None:
    """Its last 1 would hide that it is connected nowhere."""
    names = (
        "k2_feed_connection_status",
        "k2_feed_last_message_timestamp_seconds",
        "k2_feed_last_pong_timestamp_seconds",
        "k2_feed_reconnect_delay_seconds",
    )
    labels = {"exchange": "binance", "session": "binance-0"}
    async with (
        serving(ListFeed([trade(1)])) as server,
        source(codecs, log, server.url, clock=SYSTEM_CLOCK) as made,
    ):
        await made.step.own([5])
        await until(lambda: made.step.counts.trades == 1)
        made.step.observe()
        metrics.HEALTH.labels("feed binance-0").set(1)
        assert shown(names[0], **labels) == 1
        await made.step.own([])
        made.step.observe()
        assert [shown(name, **labels) for name in names] == [None] * 4
        assert shown("k2_health_check", check="feed binance-0") is None
