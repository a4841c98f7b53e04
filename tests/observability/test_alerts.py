"""Every alert fires on what it is for and not on a healthy run, in promtool, from real series."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.observability.conftest import Run
from tests.services.prometheus import RULES
from tests.services.require import require_programs

pytestmark = pytest.mark.timeout(180)

_FOUND: list[dict[str, Any]] = [
    rule
    for path in RULES
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in _FOUND if "alert" in rule}
RECORDED = {rule["record"]: rule for rule in _FOUND if "record" in rule}
#: promtool writes samples every minute.
HOURS_8 = 480


Values = Mapping[str, "str | Buckets"]


@dataclass(frozen=True)
class Story:
    """`sick` and `healthy`: values per series name (and label part), in promtool's notation.

    The series themselves are those of the scripted run.
    """

    sick: Values
    healthy: Values
    minutes: int = 60


def counts(per_minute: float, minutes: int = HOURS_8) -> str:
    return f"0+{per_minute:g}x{minutes}"


def stays(value: float, minutes: int = HOURS_8) -> str:
    return f"{value:g}+0x{minutes}"


@dataclass(frozen=True)
class Buckets:
    """100 a minute: `fast` of them take `upto_s` seconds, the rest longer than any bucket."""

    fast: float
    upto_s: float

    def values(self, series: str) -> str:
        """promtool's notation of one of its series."""
        bound = re.search(r'[{,]le="([^"]+)"', series)
        le = float("inf") if bound is None else float(bound[1])
        if "_sum{" in series:
            return counts(100 * self.upto_s)
        if math.isinf(le):
            return counts(100)
        return counts(self.fast if le >= self.upto_s else 0)


def slo(bad: Values, good: Values) -> Story:
    return Story(bad, good, minutes=HOURS_8)


_HTTP = "k2_http_requests_total"
_AVAILABILITY = slo(
    {
        f'{_HTTP}{{endpoint="/v1/trades",status_code="5': counts(20),
        f'{_HTTP}{{endpoint="/v1/trades",status_code="2': counts(100),
        f'{_HTTP}{{endpoint="/health",status_code="2': counts(1_000),
    },
    {
        f'{_HTTP}{{endpoint="/v1/trades",status_code="5': stays(0),
        f'{_HTTP}{{endpoint="/v1/trades",status_code="2': counts(100),
        # Probes of workers that start tell nothing of answers.
        f'{_HTTP}{{endpoint="/health",status_code="5': counts(1_000),
    },
)
_SECONDS = "k2_http_request_duration_seconds"
_LATENCY = slo(
    {
        f'{_SECONDS}{{endpoint="/v1/trades"': Buckets(10, 0.1),
        # However many and fast, they do not make up for slow answers.
        f'{_SECONDS}{{endpoint="/health"': Buckets(100, 0.001),
        f'{_SECONDS}{{endpoint="/metrics"': Buckets(100, 0.001),
    },
    {
        f'{_SECONDS}{{endpoint="/v1/trades"': Buckets(100, 0.1),
        f'{_SECONDS}{{endpoint="/health"': Buckets(0, 0.1),
    },
)
_FRESHNESS = slo(
    {"k2_freshness_seconds": Buckets(10, 0.1)}, {"k2_freshness_seconds": Buckets(100, 0.1)}
)
_COMPLETE = slo(
    {"k2_sequence_missing_ids_total": counts(10), "k2_kafka_messages_produced_total": counts(100)},
    {"k2_sequence_missing_ids_total": stays(3), "k2_kafka_messages_produced_total": counts(1000)},
)
_PRODUCED = "k2_kafka_messages_produced_total"

STORIES: dict[str, Story] = {
    "ConsumerLagCritical": Story(
        {"k2_kafka_consumer_lag_messages": stays(900_000)},
        {"k2_kafka_consumer_lag_messages": stays(10)},
    ),
    "ConsumerLagGrowing": Story(
        {"k2_kafka_consumer_lag_messages": counts(20_000)},
        {"k2_kafka_consumer_lag_messages": stays(5_000)},
    ),
    "ConsumerRebalancingFrequently": Story(
        {"k2_rebalances_total": counts(1)}, {"k2_rebalances_total": stays(3)}
    ),
    "NoDataIngested": Story({_PRODUCED: stays(500)}, {_PRODUCED: counts(500)}),
    "FeedStale": Story(
        {"k2_feed_last_message_timestamp_seconds": stays(1)},
        {"k2_feed_last_message_timestamp_seconds": f"1+60x{HOURS_8}"},
    ),
    "FeedDisconnected": Story(
        {"k2_feed_connection_status": stays(0)}, {"k2_feed_connection_status": stays(1)}
    ),
    "FeedReconnectsHigh": Story(
        {"k2_feed_reconnects_total": counts(2)}, {"k2_feed_reconnects_total": stays(2)}
    ),
    "SequenceGapsHigh": Story(
        {"k2_sequence_gaps_detected_total": counts(700)},
        {"k2_sequence_gaps_detected_total": counts(1)},
    ),
    "DuplicateRateHigh": Story(
        {"k2_duplicate_messages_detected_total": counts(20), _PRODUCED: counts(100)},
        {"k2_duplicate_messages_detected_total": counts(1), _PRODUCED: counts(100)},
    ),
    "DeadLettersHigh": Story(
        {"k2_dead_letters_total": counts(5), _PRODUCED: counts(100)},
        {"k2_dead_letters_total": stays(5), _PRODUCED: counts(100)},
    ),
    "ProducerErrorRateHigh": Story(
        {"k2_kafka_produce_errors_total": counts(10)}, {"k2_kafka_produce_errors_total": stays(1)}
    ),
    "ProducerRefused": Story(
        {"k2_kafka_produce_errors_total": counts(1)}, {"k2_kafka_produce_errors_total": stays(1)}
    ),
    "WorkerNotReady": Story({"k2_worker_ready": stays(0)}, {"k2_worker_ready": stays(1)}),
    "IcebergWriteFailures": Story(
        {"k2_iceberg_commit_failures_total": counts(1)},
        {"k2_iceberg_commit_failures_total": stays(2)},
    ),
    "IcebergCommitsStalled": Story(
        {"k2_sink_buffer_rows": stays(9), "k2_iceberg_transactions_total": stays(4)},
        {"k2_sink_buffer_rows": stays(9), "k2_iceberg_transactions_total": counts(12)},
    ),
    "IcebergCommitSlow": Story(
        {"k2_iceberg_write_duration_seconds": Buckets(0, 0.1)},
        {"k2_iceberg_write_duration_seconds": Buckets(100, 0.1)},
    ),
    "APIServiceDown": Story({"up": stays(0)}, {"up": stays(1)}),
    "RoleWithoutWorker": Story({"up": "1+0x30 _x90"}, {"up": stays(1)}),
    "APIErrorRateHigh": _AVAILABILITY,
    "APILatencyHigh": Story(_LATENCY.sick, _LATENCY.healthy),
    "QueryTimeoutRateHigh": Story(
        {
            'k2_query_executions_total{query_type="sql",status="timeout"': counts(50),
            'k2_query_executions_total{query_type="sql",status="ok"': counts(50),
        },
        {'k2_query_executions_total{query_type="sql",status="ok"': counts(50)},
    ),
    "QueryExecutionTimeSlow": Story(
        {"k2_query_duration_seconds": Buckets(10, 0.1)},
        {"k2_query_duration_seconds": Buckets(100, 0.1)},
    ),
    "EventLoopBlocked": Story(
        {"k2_event_loop_lag_seconds": stays(0.9)}, {"k2_event_loop_lag_seconds": stays(0.001)}
    ),
    "HighMemoryUsage": Story(
        {
            "k2_process_memory_rss_bytes": stays(95),
            "k2_process_memory_limit_bytes": stays(100),
        },
        {
            "k2_process_memory_rss_bytes": stays(50),
            "k2_process_memory_limit_bytes": stays(100),
        },
    ),
    "MemoryLeakDetected": Story(
        {"k2_memory_leak_detection_score": stays(0.9)},
        {"k2_memory_leak_detection_score": stays(0.2)},
    ),
    "DiskSpaceCriticallyLow": Story(
        {"k2_data_dir_free_bytes": stays(5), "k2_data_dir_total_bytes": stays(100)},
        {"k2_data_dir_free_bytes": stays(50), "k2_data_dir_total_bytes": stays(100)},
    ),
    "LogDown": Story({'k2_health_check{check="log"': stays(0)}, {"k2_health_check": stays(1)}),
    "LakeDown": Story({'k2_health_check{check="lake"': stays(0.5)}, {"k2_health_check": stays(1)}),
    "DegradationLevelHigh": Story(
        {"k2_degradation_level": stays(2)}, {"k2_degradation_level": stays(1)}
    ),
    "CircuitBreakerOpen": Story(
        {"k2_degradation_level": stays(4)}, {"k2_degradation_level": stays(3)}
    ),
    "ServiceLeftAlone": Story(
        {'k2_circuit_breaker_state{breaker_name="catalog"': stays(1)},
        {"k2_circuit_breaker_state": stays(0)},
    ),
    "MessagesShedHigh": Story(
        {"k2_messages_shed_total": counts(600)}, {"k2_messages_shed_total": stays(600)}
    ),
    "WorkerRestarting": Story(
        {"process_start_time_seconds": counts(120)},
        {"process_start_time_seconds": f"1+0x30 900+0x{HOURS_8}"},
    ),
    "MaintenanceFailing": Story(
        {"k2_maintenance_failures_total": counts(1)}, {"k2_maintenance_failures_total": stays(3)}
    ),
    "CircuitBreakerFailureRateHigh": Story(
        {"k2_circuit_breaker_failures_total": counts(2)},
        {"k2_circuit_breaker_failures_total": stays(5)},
    ),
    "MessagesLost": Story(
        {"k2_messages_shed_lost_total": f"0+0x50 500+0x{HOURS_8}"},
        {"k2_messages_shed_lost_total": stays(500)},
    ),
    **{f"SloAvailabilityBurn{speed}": _AVAILABILITY for speed in ("Fast", "Slow")},
    **{f"SloQueryLatencyBurn{speed}": _LATENCY for speed in ("Fast", "Slow")},
    **{f"SloFreshnessBurn{speed}": _FRESHNESS for speed in ("Fast", "Slow")},
    **{f"SloCompletenessBurn{speed}": _COMPLETE for speed in ("Fast", "Slow")},
}
#: What only a failure makes, and need not be there before it; labels as the code sets them.
_UNSEEN: list[tuple[str, dict[str, str]]] = [
    ("k2_query_executions_total", {"query_type": "sql", "status": "timeout"}),
    (_HTTP, {"method": "GET", "endpoint": "/v1/trades", "status_code": "504"}),
    (_HTTP, {"method": "GET", "endpoint": "/health", "status_code": "503"}),
    ("up", {}),
]


def text(name: str, labels: Mapping[str, str]) -> str:
    inner = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    return f"{name}{{{inner}}}"


def series_of(run: Run) -> list[str]:
    """Every series of the run as Prometheus stores it, with the labels a scrape adds."""
    added = {"job": "k2", "instance": "worker:8000"}
    found = [
        text(sample.name, {**sample.labels, **added})
        for family in run.families.values()
        for sample in family.samples
    ]
    unseen = [text(name, {**labels, **added}) for name, labels in _UNSEEN]
    return found + [one for one in unseen if one not in found]


def chosen(series: list[str], values: Values) -> list[dict[str, str]]:
    """promtool's input: of each wanted name all series that have the wanted label values."""
    found = []
    for want, notation in values.items():
        name, _, label = want.partition("{")
        names = {name, f"{name}_bucket", f"{name}_count"}
        matching = [
            one for one in series if one.partition("{")[0] in names and _has(one, label.split(","))
        ]
        assert matching, f"the run has no series {want}"
        found += [
            {
                "series": one,
                "values": notation if isinstance(notation, str) else notation.values(one),
            }
            for one in matching
        ]
    return found


def _has(series: str, labels: list[str]) -> bool:
    return all(not label or re.search(rf"[{{,]{re.escape(label)}", series) for label in labels)


def needed(alert: str, directory: Path) -> Path:
    """A file with the alert and the recorded series it stands on: the others only take time."""
    rules = [ALERTS[alert]]
    for rule in rules:
        rules += [RECORDED[name] for name in RECORDED if name in rule["expr"]]
    file = directory / "rules.yml"
    group = {"name": "needed", "rules": rules[::-1]}
    file.write_text(yaml.safe_dump({"groups": [group]}))
    return file


def promtool(directory: Path, series: list[dict[str, str]], alert: str, minutes: int, fires: bool):
    """Run one unit test: is `alert` firing after `minutes`?"""
    state = f'ALERTS{{alertname="{alert}",alertstate="firing"}}'
    labels = "{}" if fires else state.removeprefix("ALERTS")
    expression = f"count({state}) > bool 0" if fires else f"absent({state})"
    test = {
        "rule_files": [str(needed(alert, directory))],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": series,
                "promql_expr_test": [
                    {
                        "expr": expression,
                        "eval_time": f"{minutes}m",
                        "exp_samples": [{"labels": labels, "value": 1}],
                    }
                ],
            }
        ],
    }
    file = directory / "test.yml"
    file.write_text(yaml.safe_dump(test))
    done = subprocess.run(
        ["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_story() -> None:
    assert set(STORIES) == set(ALERTS)


def test_rules_are_valid() -> None:
    require_programs("prometheus", "promtool")
    done = subprocess.run(
        ["promtool", "check", "rules", *map(str, RULES)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_it_fires_when_it_should(run: Run, tmp_path: Path, name: str) -> None:
    require_programs("prometheus", "promtool")
    story = STORIES[name]
    promtool(tmp_path, chosen(series_of(run), story.sick), name, story.minutes, fires=True)


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_it_is_quiet_when_all_is_well(run: Run, tmp_path: Path, name: str) -> None:
    require_programs("prometheus", "promtool")
    story = STORIES[name]
    promtool(tmp_path, chosen(series_of(run), story.healthy), name, story.minutes, fires=False)


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_its_runbook_exists(name: str) -> None:
    page, _, anchor = ALERTS[name]["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^## (.+)$", Path(page).read_text(), re.MULTILINE)
    assert anchor in {heading.strip("`").lower().replace(" ", "-") for heading in headings}


#: What the first failure makes ends the worker: it has to be there before, at 0.
_FROM_ZERO = (
    "k2_kafka_produce_errors",
    "k2_iceberg_commit_failures",
    "k2_iceberg_write_errors",
    "k2_messages_shed_lost",
    "k2_maintenance_failures",
    "k2_circuit_breaker_failures",
)


@pytest.mark.parametrize("name", _FROM_ZERO)
def test_failures_are_exported_before_there_are_any(run: Run, name: str) -> None:
    assert [sample.value for sample in run.families[name].samples if sample.value == 0]


def test_nothing_fires_in_the_scripted_run(run: Run) -> None:
    """Its faults are short; what fires at once on them would wake people for nothing."""
    firing = run.prometheus.query('ALERTS{alertstate="firing"}')
    assert [one["metric"]["alertname"] for one in firing] == []
