"""Write Grafana's dashboards from the few facts each panel has: `make docs`.

The JSON in `deploy/grafana/dashboards` is generated: Grafana wants forty lines
for what is one here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

TARGET: Final = Path(__file__).parent.parent / "deploy/grafana/dashboards"
#: Chosen at the top of a board; `auto` follows what is shown.
_RATE: Final = "[$interval]"
_INTERVALS: Final = "1m,5m,15m,1h"


@dataclass(frozen=True)
class Panel:
    """`queries`: legend -> PromQL. `unit`: Grafana's name of it."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    help: str = ""


def rate(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}{_RATE}))"


def quantile(q: float, metric: str, by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket{_RATE})))"


def both(metric: str, by: str) -> dict[str, str]:
    return {
        f"p50 {{{{{by}}}}}": quantile(0.5, metric, by),
        f"p99 {{{{{by}}}}}": quantile(0.99, metric, by),
    }


LEVEL = Panel(
    "Degradation level",
    {"level": "max(k2_degradation_level)"},
    kind="stat",
    help="0 NORMAL, 1 SOFT, 2 GRACEFUL, 3 AGGRESSIVE, 4 CIRCUIT_BREAK",
)
READY = Panel("Workers ready", {"ready": "sum(k2_worker_ready)"}, kind="stat")
LAG = Panel("Lag, records", {"{{topic}}": "sum by (topic) (k2_kafka_consumer_lag_messages)"})
FRESH = Panel("Freshness: socket to answer", both("k2_freshness_seconds", "data_type"), "s")
PRODUCED = Panel(
    "Into the log, records/s",
    {"{{exchange}} {{data_type}}": rate("k2_kafka_messages_produced_total", "exchange, data_type")},
    "rowsps",
)
ROWS = Panel(
    "Into the lake, rows/s", {"{{table}}": rate("k2_iceberg_rows_written_total", "table")}, "rowsps"
)
COMMIT = Panel("Commit time", both("k2_iceberg_write_duration_seconds", "table"), "s")
REQUESTS = Panel(
    "Requests/s", {"{{status_code}}": rate("k2_http_requests_total", "status_code")}, "reqps"
)
LATENCY = Panel("Answer time", both("k2_http_request_duration_seconds", "endpoint"), "s")
GAPS = Panel(
    "Gaps opened/s",
    {
        "{{exchange}} {{data_type}} {{severity}}": rate(
            "k2_sequence_gaps_detected_total", "exchange, data_type, severity"
        )
    },
)
READ = Panel(
    "Read, records/s",
    {"{{agent}} {{topic}}": rate("k2_kafka_messages_consumed_total", "agent, topic")},
    "rowsps",
)
QUERY_TIME = Panel("Query time", both("k2_query_duration_seconds", "query_type"), "s")
KEPT = Panel(
    "Answers about the past that were kept",
    {
        "{{cache_tier}}": "sum by (cache_tier) (increase(k2_query_cache_hits_total[1h])) / "
        "(sum by (cache_tier) (increase(k2_query_cache_hits_total[1h])) + "
        "sum by (cache_tier) (increase(k2_query_cache_misses_total[1h])))"
    },
    "percentunit",
    help="Of the last hour: hits, of hits and misses",
)
BREAKERS = Panel(
    "Circuit breakers: 1 open, 2 half-open",
    {"{{breaker_name}}": "max by (breaker_name) (k2_circuit_breaker_state)"},
)
LETTERS = Panel("Dead letters/s", {"{{reason}}": rate("k2_dead_letters_total", "reason")})
MEMORY = Panel(
    "Memory of the limit",
    {"{{instance}}": "k2_process_memory_rss_bytes / k2_process_memory_limit_bytes"},
    "percentunit",
)

BOARDS: Final[dict[str, tuple[str, tuple[Panel, ...]]]] = {
    "overview": (
        "K2 · Overview",
        (
            READY,
            LEVEL,
            Panel(
                "Alerts firing",
                {"alerts": 'count(ALERTS{alertstate="firing"}) or vector(0)'},
                kind="stat",
            ),
            PRODUCED,
            READ,
            ROWS,
            LAG,
            FRESH,
            COMMIT,
            REQUESTS,
            LATENCY,
            QUERY_TIME,
            KEPT,
            GAPS,
            BREAKERS,
            MEMORY,
            Panel("Health", {"{{check}}": "min by (check) (k2_health_check)"}, "percentunit"),
        ),
    ),
    "feeds": (
        "K2 · Feeds",
        (
            Panel(
                "Connected sessions",
                {"{{exchange}}": "sum by (exchange) (k2_feed_connection_status)"},
                kind="stat",
            ),
            Panel(
                "Silence of a session",
                {
                    "{{session}}": "time() - "
                    "max by (session) (k2_feed_last_message_timestamp_seconds)"
                },
                "s",
            ),
            Panel(
                "Frames/s",
                {
                    "{{exchange}} {{session}}": rate(
                        "k2_feed_messages_received_total", "exchange, session"
                    )
                },
            ),
            PRODUCED,
            Panel("Reconnects/s", {"{{reason}}": rate("k2_feed_reconnects_total", "reason")}),
            Panel(
                "Frames refused/s",
                {"{{error_type}}": rate("k2_feed_message_errors_total", "error_type")},
            ),
            GAPS,
            Panel(
                "Ids missing and closed gaps/s",
                {
                    "missing {{data_type}}": rate("k2_sequence_missing_ids_total", "data_type"),
                    "closed {{data_type}}": rate("k2_sequence_gaps_closed_total", "data_type"),
                },
            ),
            Panel(
                "Duplicates, late, resets/s",
                {
                    "duplicates": rate("k2_duplicate_messages_detected_total", "exchange"),
                    "late": rate("k2_out_of_order_messages_total", "exchange"),
                    "resets": rate("k2_sequence_resets_detected_total", "exchange"),
                },
            ),
            LETTERS,
            Panel(
                "Quotes flagged/s",
                {"{{condition}}": rate("k2_quote_conditions_total", "condition")},
            ),
            Panel(
                "Data quality, 0 to 100",
                {
                    "{{exchange}} {{data_type}}": "min by (exchange, data_type) "
                    "(k2_data_quality_score)"
                },
            ),
            Panel(
                "Shares of the quality",
                {
                    "{{exchange}} {{data_type}} {{share}}": "min by (exchange, data_type, share) "
                    "(k2_data_quality_share)"
                },
                "percentunit",
            ),
            Panel(
                "Anomalies flagged/s",
                {
                    "{{exchange}} {{data_type}} {{kind}}": rate(
                        "k2_data_anomalies_total", "exchange, data_type, kind"
                    )
                },
            ),
        ),
    ),
    "pipeline": (
        "K2 · Pipeline",
        (
            LAG,
            Panel(
                "Lag, age of the oldest record",
                {"{{topic}}": "max by (topic) (k2_kafka_consumer_lag_seconds)"},
                "s",
            ),
            READ,
            Panel(
                "Acknowledgement of the log",
                both("k2_kafka_produce_duration_seconds", "topic"),
                "s",
            ),
            Panel(
                "Validation of a batch", both("k2_validate_batch_duration_seconds", "topic"), "s"
            ),
            Panel("Event loop late", {"{{instance}}": "k2_event_loop_lag_seconds"}, "s"),
            Panel("Checkpoint size", {"{{topic}}": "k2_checkpoint_bytes"}, "bytes"),
            Panel("Checkpoints/s", {"{{topic}}": rate("k2_checkpoints_total", "topic")}),
            Panel("Symbols tracked", {"{{topic}}": "sum by (topic) (k2_deduplication_cache_size)"}),
            Panel("Rebalances", {"{{instance}}": "increase(k2_rebalances_total[15m])"}),
            MEMORY,
            Panel(
                "Sessions gave way",
                {"{{instance}}": "increase(k2_backpressure_events_total[15m])"},
            ),
            Panel("Leak score", {"{{instance}}": "k2_memory_leak_detection_score"}),
        ),
    ),
    "lake": (
        "K2 · Lake",
        (
            ROWS,
            Panel("Commits/s", {"{{table}}": rate("k2_iceberg_transactions_total", "table")}),
            COMMIT,
            Panel("Rows of a commit", both("k2_iceberg_transaction_rows", "table")),
            Panel("Rows waiting", {"{{table}}": "sum by (table) (k2_sink_buffer_rows)"}),
            Panel(
                "Commits given up",
                {
                    "{{table}}": "sum by (table) "
                    "(increase(k2_iceberg_commit_failures_total[15m])) or vector(0)"
                },
            ),
            Panel("Data files", {"{{table}}": "max by (table) (k2_lake_files)"}),
            Panel(
                "Files of the fullest day and bucket",
                {"{{table}}": "max by (table) (k2_lake_partition_files_max)"},
            ),
            Panel("Bytes", {"{{table}}": "max by (table) (k2_iceberg_table_size_bytes)"}, "bytes"),
            Panel(
                "Bytes of a data file",
                {"{{table}}": "max by (table) (k2_lake_file_bytes)"},
                "bytes",
            ),
            Panel("Snapshots", {"{{table}}": "max by (table) (k2_lake_snapshots)"}),
            Panel("Manifests", {"{{table}}": "max by (table) (k2_lake_manifests)"}),
            Panel("Time to plan", {"{{table}}": "max by (table) (k2_lake_plan_seconds)"}, "s"),
            Panel("Round of maintenance", both("k2_maintenance_duration_seconds", "table"), "s"),
            Panel(
                "Files merged and deleted/s",
                {"{{table}} {{action}}": rate("k2_maintenance_files_total", "table, action")},
            ),
            Panel(
                "Rounds of maintenance that failed",
                {"{{table}}": "sum by (table) (increase(k2_maintenance_failures_total[1h]))"},
            ),
            Panel(
                "Free space",
                {"{{instance}}": "k2_data_dir_free_bytes / k2_data_dir_total_bytes"},
                "percentunit",
            ),
        ),
    ),
    "query": (
        "K2 · Query",
        (
            REQUESTS,
            LATENCY,
            Panel(
                "Queries/s",
                {
                    "{{query_type}} {{status}}": rate(
                        "k2_query_executions_total", "query_type, status"
                    )
                },
            ),
            QUERY_TIME,
            KEPT,
            Panel(
                "Requests under way",
                {"{{endpoint}}": "sum by (endpoint) (k2_http_requests_in_progress)"},
            ),
            Panel(
                "Failed requests/s",
                {
                    "{{endpoint}} {{error_type}}": rate(
                        "k2_http_request_errors_total", "endpoint, error_type"
                    )
                },
                "reqps",
            ),
            Panel(
                "Query slots",
                {
                    "busy": "sum(k2_connection_pool_active_connections)",
                    "free": "sum(k2_connection_pool_available_connections)",
                },
            ),
            Panel(
                "Wait for a slot",
                {"p99": quantile(0.99, "k2_connection_pool_wait_time_seconds")},
                "s",
            ),
            FRESH,
            Panel("Hot rows", {"{{data_type}}": "sum by (data_type) (k2_tail_rows)"}),
            Panel("Hot bytes", {"{{data_type}}": "sum by (data_type) (k2_tail_bytes)"}, "bytes"),
            Panel("Event loop late", {"{{instance}}": "k2_event_loop_lag_seconds"}, "s"),
        ),
    ),
    "degradation": (
        "K2 · Degradation",
        (
            LEVEL,
            Panel("Level over time", {"{{instance}}": "k2_degradation_level"}),
            Panel("Lag, all topics", {"lag": "sum(k2_kafka_consumer_lag_messages)"}),
            MEMORY,
            Panel(
                "Put off, records/s",
                {"tier {{symbol_tier}}": rate("k2_messages_shed_total", "symbol_tier")},
            ),
            Panel(
                "Changes of level",
                {
                    "{{from_level}} to {{to_level}}": "sum by (from_level, to_level) "
                    "(increase(k2_degradation_transitions_total[15m]))"
                },
            ),
            BREAKERS,
        ),
    ),
}


def board(uid: str, title: str, panels: tuple[Panel, ...]) -> dict[str, Any]:
    """One dashboard: panels three abreast."""
    return {
        "uid": f"k2-{uid}",
        "title": title,
        "tags": ["k2"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "type": "datasource",
                    "query": "prometheus",
                    "label": "Source",
                },
                {
                    "name": "interval",
                    "type": "interval",
                    "query": _INTERVALS,
                    "label": "Rates over",
                    "auto": True,
                    "auto_count": 60,
                    # Less than two scrapes give no rate.
                    "auto_min": "1m",
                    "current": {"text": "auto", "value": "$__auto_interval_interval"},
                },
            ]
        },
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": number + 1,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": source,
        "gridPos": {"h": 8, "w": 8, "x": number % 3 * 8, "y": number // 3 * 8},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {},
        "targets": [
            {
                "refId": chr(ord("A") + at),
                "datasource": source,
                "expr": expr,
                "legendFormat": legend,
            }
            for at, (legend, expr) in enumerate(panel.queries.items())
        ],
    }


def pages() -> dict[str, str]:
    """File name -> content."""
    return {
        f"{uid}.json": json.dumps(board(uid, title, panels), indent=1, ensure_ascii=False) + "\n"
        for uid, (title, panels) in BOARDS.items()
    }


if __name__ == "__main__":
    TARGET.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (TARGET / name).write_text(text, encoding="utf-8")
