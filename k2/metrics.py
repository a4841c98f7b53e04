"""Every metric K2 exports, by name, in one place; `docs/metrics.md` is generated from here.

Names and labels follow the catalogue of the platform; durations are seconds, sizes bytes. Faust's
own sensor exports the `faust`-side figures beside them.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram, Info, disable_created_metrics

# A second series per counter and bucket, with the time it was made, that nobody asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]

_LATENCY: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_STORAGE: Final = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_WAIT: Final = (0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
_ROWS: Final = (10, 100, 500, 1_000, 5_000, 10_000, 50_000, 100_000, 500_000)
_FEED: Final = ("exchange", "asset_class", "data_type")
_SESSION: Final = ("exchange", "session")

PLATFORM = Info("k2_platform", "Version and environment of this worker")

# Source
FEED_CONNECTION_STATUS = Gauge(
    "k2_feed_connection_status", "1 while the session is connected", [*_SESSION]
)
FEED_MESSAGES = Counter("k2_feed_messages_received", "Frames received", [*_SESSION])
FEED_ERRORS = Counter(
    "k2_feed_message_errors", "Frames that could not be mapped", ["exchange", "error_type"]
)
FEED_RECONNECTS = Counter(
    "k2_feed_reconnects",
    "Connections made anew, by what ended the one before",
    [*_SESSION, "reason"],
)
BACKFILLED = Counter("k2_feed_backfilled", "Records fetched from a history", ["exchange"])
FEED_LAST_MESSAGE = Gauge(
    "k2_feed_last_message_timestamp_seconds", "Wall time of the last frame", [*_SESSION]
)
FEED_LAST_PONG = Gauge(
    "k2_feed_last_pong_timestamp_seconds", "Wall time of the last pong", [*_SESSION]
)
FEED_RECONNECT_DELAY = Gauge(
    "k2_feed_reconnect_delay_seconds", "Delay before the next attempt", [*_SESSION]
)

# Log
PRODUCED = Counter(
    "k2_kafka_messages_produced", "Records acknowledged by the log", [*_FEED, "topic"]
)
PRODUCE_ERRORS = Counter(
    "k2_kafka_produce_errors", "Record batches the log refused", ["topic", "error_type"]
)
PRODUCE_SECONDS = Histogram(
    "k2_kafka_produce_duration_seconds",
    "Time from handing a batch to the log to its acknowledgement",
    ["topic"],
    buckets=_LATENCY,
)
CONSUMED = Counter("k2_kafka_messages_consumed", "Records read by an agent", ["topic", "agent"])
LAG = Gauge(
    "k2_kafka_consumer_lag_messages",
    "Records between the read position and the end of the partition",
    ["topic", "partition"],
)

LAG_SECONDS = Gauge(
    "k2_kafka_consumer_lag_seconds",
    "How long ago the oldest record not read yet was first seen in the partition",
    ["topic", "partition"],
)
READ_POSITION = Gauge("k2_kafka_consumer_offset", "Next offset to read", ["topic", "partition"])
CONSUMER_ERRORS = Counter(
    "k2_consumer_errors", "Looks at log and lake that got no answer, two a second", ["error_type"]
)

# Validation and continuity
DEAD_LETTERS = Counter(
    "k2_dead_letters", "Records put into a dead-letter topic", [*_FEED, "reason"]
)
DUPLICATES = Counter("k2_duplicate_messages_detected", "Records dropped as duplicates", [*_FEED])
GAPS = Counter(
    "k2_sequence_gaps_detected", "Gaps opened; small is at most 10 ids", [*_FEED, "severity"]
)
MISSING_IDS = Counter(
    "k2_sequence_missing_ids", "Ids that did not come, as their gap was opened", [*_FEED]
)
GAPS_CLOSED = Counter("k2_sequence_gaps_closed", "Gap ranges filled by late records", [*_FEED])
RESETS = Counter("k2_sequence_resets_detected", "New id generations", [*_FEED])
OUT_OF_ORDER = Counter("k2_out_of_order_messages", "Late records accepted", [*_FEED])
QUOTE_FLAGS = Counter("k2_quote_conditions", "Quotes flagged, not rejected", ["condition"])
VALIDATE_SECONDS = Histogram(
    "k2_validate_batch_duration_seconds",
    "Time the validate step holds the event loop for one batch",
    ["topic"],
    buckets=_LATENCY,
)
CHECKPOINTS = Counter("k2_checkpoints", "Continuity checkpoints written", ["topic"])
CHECKPOINT_BYTES = Gauge("k2_checkpoint_bytes", "Size of the newest checkpoint", ["topic"])
TRACKED_SYMBOLS = Gauge(
    "k2_deduplication_cache_size", "Symbols whose continuity this worker holds", ["topic"]
)

# Lake
ROWS_WRITTEN = Counter("k2_iceberg_rows_written", "Rows committed", ["table"])
COMMITS = Counter("k2_iceberg_transactions", "Snapshots committed", ["table"])
COMMIT_FAILURES = Counter("k2_iceberg_commit_failures", "Commits given up", ["table"])
WRITE_ERRORS = Counter(
    "k2_iceberg_write_errors", "Commits given up, by what ended them", ["table", "error_type"]
)
WRITE_SECONDS = Histogram(
    "k2_iceberg_write_duration_seconds",
    "Time of one commit, data files included",
    ["table"],
    buckets=_STORAGE,
)
TRANSACTION_ROWS = Histogram(
    "k2_iceberg_transaction_rows", "Rows of one commit", ["table"], buckets=_ROWS
)
BATCH_ROWS = Histogram(
    "k2_iceberg_batch_size",
    "Rows handed to one commit; those of candles are trades",
    ["table"],
    buckets=_ROWS,
)
LAKE_BYTES = Gauge(
    "k2_iceberg_table_size_bytes", "Live data files of the newest snapshot", ["table"]
)
LAKE_FILES = Gauge("k2_lake_files", "Live data files of the newest snapshot", ["table"])
LAKE_FILE_BYTES = Gauge("k2_lake_file_bytes", "Average bytes of a live data file", ["table"])
LAKE_MOST_FILES = Gauge(
    "k2_lake_partition_files_max", "Live data files of the fullest day and bucket", ["table"]
)
LAKE_SNAPSHOTS = Gauge("k2_lake_snapshots", "Snapshots in the metadata", ["table"])
LAKE_MANIFESTS = Gauge("k2_lake_manifests", "Manifests of the newest snapshot", ["table"])
LAKE_PLAN_SECONDS = Gauge(
    "k2_lake_plan_seconds", "Time to list the files of the newest snapshot", ["table"]
)
MAINTAINED_FILES = Counter(
    "k2_maintenance_files", "Data files merged, and files deleted", ["table", "action"]
)
MAINTENANCE_FAILURES = Counter(
    "k2_maintenance_failures", "Rounds of maintenance that failed", ["table"]
)
MAINTENANCE_SECONDS = Histogram(
    "k2_maintenance_duration_seconds",
    "Time of one round of maintenance",
    ["table"],
    buckets=_STORAGE,
)
SINK_BUFFER_ROWS = Gauge("k2_sink_buffer_rows", "Rows waiting for a commit", ["table"])

# Query
QUERIES = Counter("k2_query_executions", "Queries by outcome", ["query_type", "status"])
QUERY_SECONDS = Histogram(
    "k2_query_duration_seconds",
    "Time of a query in the engine, the JSON of large answers included",
    ["query_type"],
    buckets=_LATENCY,
)
QUERY_ROWS = Histogram("k2_query_rows_returned", "Rows of one answer", ["endpoint"], buckets=_ROWS)
POOL_SIZE = Gauge("k2_connection_pool_size", "Queries that may run at once")
POOL_ACTIVE = Gauge("k2_connection_pool_active_connections", "Queries that run")
POOL_AVAILABLE = Gauge("k2_connection_pool_available_connections", "Query slots that are free")
POOL_WAIT_SECONDS = Histogram(
    "k2_connection_pool_wait_time_seconds", "Time a query waited for its slot", buckets=_WAIT
)
POOL_TIMEOUTS = Counter(
    "k2_connection_pool_acquisition_timeouts",
    "Queries refused because no slot became free, or no place to wait for one was left",
)
QUERY_CACHE_HITS = Counter(
    "k2_query_cache_hits", "Answers kept from before and still right", ["cache_tier"]
)
QUERY_CACHE_MISSES = Counter(
    "k2_query_cache_misses", "Answers that had to be made anew", ["cache_tier"]
)
HTTP_REQUESTS = Counter(
    "k2_http_requests", "HTTP requests by outcome", ["method", "endpoint", "status_code"]
)
HTTP_SECONDS = Histogram(
    "k2_http_request_duration_seconds",
    "Time from request to answer",
    ["method", "endpoint"],
    buckets=_LATENCY,
)
HTTP_IN_PROGRESS = Gauge(
    "k2_http_requests_in_progress", "Requests being answered, streams too", ["method", "endpoint"]
)
HTTP_ERRORS = Counter(
    "k2_http_request_errors",
    "Requests that failed, by the error's code; client_left: nobody waited for the answer",
    ["method", "endpoint", "error_type"],
)
HTTP_TOO_LARGE = Counter(
    "k2_http_request_size_limit_exceeded",
    "Requests whose body was above K2_API_MAX_BODY_BYTES",
    ["method", "endpoint"],
)
TAIL_ROWS = Gauge("k2_tail_rows", "Hot rows held in memory", ["data_type"])
TAIL_BYTES = Gauge("k2_tail_bytes", "Arrow bytes of the hot rows", ["data_type"])
FRESHNESS = Histogram(
    "k2_freshness_seconds",
    "Time from the socket to being visible to queries, of the oldest shown at once",
    ["data_type"],
    buckets=_LATENCY,
)

# Degradation
DEGRADATION_LEVEL = Gauge("k2_degradation_level", "0 NORMAL … 4 CIRCUIT_BREAK, as agreed by all")
DEGRADATION_TRANSITIONS = Counter(
    "k2_degradation_transitions", "Changes of level", ["from_level", "to_level"]
)
MESSAGES_SHED = Counter("k2_messages_shed", "Records put off, by tier", ["symbol_tier", "reason"])
SHED_LOST = Counter(
    "k2_messages_shed_lost", "Records put off and deleted by retention before they came", ["topic"]
)

BACKPRESSURE = Counter(
    "k2_backpressure_events", "Times sessions began to give way to the steps behind them"
)

# Data quality
QUALITY_SCORE = Gauge(
    "k2_data_quality_score", "0 to 100: the shares of this feed, weighed", ["exchange", "data_type"]
)
QUALITY_SHARE = Gauge(
    "k2_data_quality_share",
    "0 to 1 over 15 minutes: completeness, validity, freshness, normality",
    ["exchange", "data_type", "share"],
)
ANOMALIES = Counter(
    "k2_data_anomalies",
    "Trades flagged, not dropped: z_score or jump of the price",
    ["exchange", "data_type", "kind"],
)

# Circuit breakers
BREAKER_STATE = Gauge("k2_circuit_breaker_state", "0 closed, 1 open, 2 half-open", ["breaker_name"])
BREAKER_FAILURES = Counter(
    "k2_circuit_breaker_failures", "Calls that a service failed", ["breaker_name"]
)
BREAKER_REFUSED = Counter(
    "k2_circuit_breaker_rejections",
    "Calls not made because the circuit was open",
    ["breaker_name"],
)
BREAKER_OPENED = Counter("k2_circuit_breaker_opened", "Times the circuit opened", ["breaker_name"])
BREAKER_IN_A_ROW = Gauge(
    "k2_circuit_breaker_consecutive_failures", "Failures since the last success", ["breaker_name"]
)

# Process
READY = Gauge("k2_worker_ready", "1 while this worker is ready")
REBALANCES = Counter("k2_rebalances", "Times partitions were assigned to this worker")
HEALTH = Gauge(
    "k2_health_check", "1 healthy, 0.5 degraded, 0 unhealthy, as /health says it", ["check"]
)
MEMORY_RSS = Gauge("k2_process_memory_rss_bytes", "Resident memory of this worker")
MEMORY_VMS = Gauge("k2_process_memory_vms_bytes", "Address space of this worker")
MEMORY_LIMIT = Gauge(
    "k2_process_memory_limit_bytes", "What this worker may use: setting, cgroup or host"
)
LEAK_SCORE = Gauge(
    "k2_memory_leak_detection_score",
    "0 to 1: growth of resident memory over an hour (50 MB/h is 1) times how steady it is",
)
DISK_FREE = Gauge("k2_data_dir_free_bytes", "Free space where the data directory is")
DISK_TOTAL = Gauge("k2_data_dir_total_bytes", "Size of the volume the data directory is on")
LOOP_LAG = Gauge(
    "k2_event_loop_lag_seconds", "How late a timer of the event loop fired, at worst of 15 s"
)
LOOP_DELAY = Histogram(
    "k2_event_loop_delay_seconds",
    "How late each timer of the event loop fired",
    buckets=(0.001, 0.0025, *_LATENCY[1:]),
)
