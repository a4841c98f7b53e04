"""Every metric K2 defines is set by a run, with the labels it documents, and with few series."""

from __future__ import annotations

import pytest
from prometheus_client import Counter, Gauge, Histogram, Info
from prometheus_client.metrics import MetricWrapperBase

from k2 import metrics
from tests.observability.conftest import Run

pytestmark = pytest.mark.timeout(180)


def _name(metric: MetricWrapperBase) -> str:
    """As a scrape has it: the text format has no type for an info."""
    name = next(iter(metric.describe())).name
    return f"{name}_info" if isinstance(metric, Info) else name


DEFINED: dict[str, MetricWrapperBase] = {
    _name(metric): metric
    for metric in vars(metrics).values()
    if isinstance(metric, MetricWrapperBase)
}
#: Set only when log or lake fail, when there is too much of everything, or where a feed has a
#: history; their own suites do that.
ONLY_ON_FAILURE = {
    "k2_kafka_produce_errors",
    "k2_iceberg_commit_failures",
    "k2_messages_shed_lost",
    "k2_maintenance_failures",
    "k2_feed_backfilled",
    "k2_circuit_breaker_failures",
    "k2_circuit_breaker_rejections",
    "k2_circuit_breaker_opened",
    "k2_iceberg_write_errors",
    "k2_consumer_errors",
    "k2_backpressure_events",
    "k2_connection_pool_acquisition_timeouts",
}
#: Partitions, routes and reasons are few and known; symbols are not labels.
MOST_SERIES = 150


@pytest.mark.parametrize("name", sorted(DEFINED))
def test_a_run_sets_it(run: Run, name: str) -> None:
    family = run.families.get(name)
    assert family is not None, "not exported"
    if name in ONLY_ON_FAILURE:
        return
    assert family.samples, "never set"
    if isinstance(DEFINED[name], Counter):
        assert any(s.value > 0 for s in family.samples if s.name.endswith("_total"))
    if isinstance(DEFINED[name], Histogram):
        assert any(s.value > 0 for s in family.samples if s.name.endswith("_count"))


@pytest.mark.parametrize("name", sorted(DEFINED))
def test_labels_are_as_documented_and_series_few(run: Run, name: str) -> None:
    wanted = set(DEFINED[name]._labelnames)
    series = set()
    for sample in run.families[name].samples:
        labels = {key: value for key, value in sample.labels.items() if key != "le"}
        if not isinstance(DEFINED[name], Info):
            assert set(labels) == wanted
        assert all(labels.values()), f"an empty label: {labels}"
        series.add(tuple(sorted(labels.items())))
    assert len(series) <= MOST_SERIES


def test_faust_own_sensor_is_exported_beside_them(run: Run) -> None:
    assert any("messages_received" in name for name in run.families), sorted(run.families)


def test_nothing_of_k2_is_exported_that_is_not_defined(run: Run) -> None:
    ours = {name for name in run.families if name.startswith("k2_")}
    assert ours <= set(DEFINED)


def test_gauges_tell_the_state(run: Run) -> None:
    def value(name: str) -> float:
        (sample,) = run.families[name].samples
        return sample.value

    assert value("k2_worker_ready") == 1
    assert 0 < value("k2_process_memory_rss_bytes") < value("k2_process_memory_limit_bytes")
    assert 0 < value("k2_data_dir_free_bytes") < value("k2_data_dir_total_bytes")
    assert isinstance(DEFINED["k2_worker_ready"], Gauge)
