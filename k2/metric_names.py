"""Names of metrics and alerts in K2's catalogue of requirements, and where they went.

What a name measured is measured still, under it or under one that says what it is; or there is a
reason why not. `docs/metrics.md` has the tables, a test compares them with what is exported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: Name of the requirement -> K2's, both without `k2_`. A value with a blank in it is a reason.
NAMES: Final[Mapping[str, str]] = {
    "platform_info": "platform_info",
    "kafka_messages_produced_total": "kafka_messages_produced_total",
    "kafka_produce_errors_total": "kafka_produce_errors_total",
    "kafka_produce_duration_seconds": "kafka_produce_duration_seconds",
    "kafka_produce_retries_total": "none: the client retries inside; the time it takes is in the "
    "duration",
    "kafka_produce_max_retries_exceeded_total": "kafka_produce_errors_total",
    "producer_initialized_total": "worker_ready",
    "producer_init_errors_total": "none: a start that fails ends the process; see "
    "`process_start_time_seconds`",
    "serializer_errors_total": "none: a record that cannot be encoded ends the worker; frames that "
    "cannot be mapped are `k2_feed_message_errors_total`",
    "serializer_cache_size": "none: schemas are loaded once, at start",
    "serializer_cache_evictions_total": "none: as above",
    "kafka_messages_consumed_total": "kafka_messages_consumed_total",
    "kafka_consumer_lag_seconds": "kafka_consumer_lag_seconds",
    "kafka_consumer_lag_messages": "kafka_consumer_lag_messages",
    "kafka_consumer_offset": "kafka_consumer_offset",
    "consumer_errors_total": "consumer_errors_total",
    "sequence_gaps_detected_total": "sequence_gaps_detected_total",
    "sequence_resets_detected_total": "sequence_resets_detected_total",
    "out_of_order_messages_total": "out_of_order_messages_total",
    "duplicate_messages_detected_total": "duplicate_messages_detected_total",
    "deduplication_cache_size": "deduplication_cache_size",
    "binance_connection_status": "feed_connection_status",
    "binance_messages_received_total": "feed_messages_received_total",
    "binance_message_errors_total": "feed_message_errors_total",
    "binance_reconnects_total": "feed_reconnects_total",
    "binance_connection_errors_total": "feed_reconnects_total",
    "binance_last_message_timestamp_seconds": "feed_last_message_timestamp_seconds",
    "binance_reconnect_delay_seconds": "feed_reconnect_delay_seconds",
    "binance_connection_rotations_total": "feed_reconnects_total",
    "binance_connection_lifetime_seconds": "none: a rotation is a reconnect with its own reason",
    "binance_last_pong_timestamp_seconds": "feed_last_pong_timestamp_seconds",
    "binance_pong_timeouts_total": "feed_reconnects_total",
    "process_memory_rss_bytes": "process_memory_rss_bytes",
    "process_memory_vms_bytes": "process_memory_vms_bytes",
    "memory_leak_detection_score": "memory_leak_detection_score",
    "iceberg_rows_written_total": "iceberg_rows_written_total",
    "iceberg_write_duration_seconds": "iceberg_write_duration_seconds",
    "iceberg_write_errors_total": "iceberg_write_errors_total",
    "iceberg_commit_failures_total": "iceberg_commit_failures_total",
    "iceberg_transactions_total": "iceberg_transactions_total",
    "iceberg_transaction_rows": "iceberg_transaction_rows",
    "iceberg_batch_size": "iceberg_batch_size",
    "iceberg_table_size_bytes": "iceberg_table_size_bytes",
    "iceberg_snapshot_count": "lake_snapshots",
    "query_executions_total": "query_executions_total",
    "query_duration_seconds": "query_duration_seconds",
    "query_rows_scanned": "query_rows_returned",
    "query_cache_hits_total": "query_cache_hits_total",
    "query_cache_misses_total": "query_cache_misses_total",
    "connection_pool_size": "connection_pool_size",
    "connection_pool_active_connections": "connection_pool_active_connections",
    "connection_pool_available_connections": "connection_pool_available_connections",
    "connection_pool_wait_time_seconds": "connection_pool_wait_time_seconds",
    "connection_pool_acquisition_timeouts_total": "connection_pool_acquisition_timeouts_total",
    "connection_pool_creation_errors_total": "none: the engine is in the process, a slot is a "
    "cursor",
    "http_requests_total": "http_requests_total",
    "http_request_duration_seconds": "http_request_duration_seconds",
    "http_request_errors_total": "http_request_errors_total",
    "http_requests_in_progress": "http_requests_in_progress",
    "http_request_size_limit_exceeded_total": "http_request_size_limit_exceeded_total",
    "http_request_size_limit_errors_total": "http_request_size_limit_exceeded_total",
    "circuit_breaker_state": "circuit_breaker_state",
    "circuit_breaker_failures_total": "circuit_breaker_failures_total",
    "circuit_breaker_consecutive_failures": "circuit_breaker_consecutive_failures",
    "circuit_breaker_rejections_total": "circuit_breaker_rejections_total",
    "circuit_breaker_opened_total": "circuit_breaker_opened_total",
    "backpressure_events_total": "backpressure_events_total",
    "degradation_level": "degradation_level",
    "degradation_transitions_total": "degradation_transitions_total",
    "messages_shed_total": "messages_shed_total",
    "messages_ingested_total": "feed_messages_received_total",
    "ingestion_latency_seconds": "freshness_seconds",
    "api_requests_total": "http_requests_total",
}
#: Alert of the requirement -> K2's, where the name is another one.
ALERTS: Final[Mapping[str, str]] = {
    "KafkaBrokerDown": "LogDown",
    "PostgreSQLCatalogDown": "LakeDown",
    "MinIOStorageDown": "LakeDown",
    "ProducerRetriesExhausted": "ProducerRefused",
    "BinanceMemoryHigh": "HighMemoryUsage",
    "BinanceMemoryLeakDetected": "MemoryLeakDetected",
}


def page_part() -> list[str]:
    """The tables, as lines of Markdown; names that stayed need no row."""
    kept = sum(asked == ours for asked, ours in NAMES.items())
    rows = [
        "",
        "## Names of the requirements",
        "",
        f"{kept} names are as the requirements have them. The others (Kraken's are as Binance's):",
        "",
        "| required | here |",
        "|---|---|",
    ]
    rows += [
        f"| `k2_{asked}` | {ours if ' ' in ours else f'`k2_{ours}`'} |"
        for asked, ours in NAMES.items()
        if asked != ours
    ]
    rows += ["", "| alert required | here |", "|---|---|"]
    return rows + [f"| {asked} | {ours} |" for asked, ours in ALERTS.items()]
