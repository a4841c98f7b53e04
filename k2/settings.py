"""Every setting of K2: name, unit, default and reason, in groups.

A setting comes from the environment (`K2_...`), else from an `.env` file, else from its default. A
secret may be in a file instead, which `K2_..._FILE` names.
`docs/configuration.md` is generated from this module.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import (
    BaseModel,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import (
    SettingsConfigDict,
)

from k2 import setting_types as types
from k2.errors import ConfigError
from k2.setting_checks import check_services
from k2.setting_feeds import Binance, BinanceFutures, Coinbase, Feed, Kraken
from k2.setting_group import Group, StringList
from k2.setting_lake import Candles, Iceberg, Maintain, Sink
from k2.setting_operations import Breaking, Tracing
from k2.sources.plan import plan_coinbase, plan_kraken, plan_sessions
from k2.topics import FEED_TOPICS, MarketTopic, channel_topics, topics_of
from k2.web.keys import KeyRing, parse_keys

LOCAL_API_KEY = "k2-dev-api-key-2026"
ROLES = ("source", "validate", "sink", "query", "control", "maintain")


class Core(Group):
    """The process and its data."""

    model_config = SettingsConfigDict(
        env_prefix="K2_", env_file=".env", extra="ignore", frozen=True
    )

    environment: Literal["local", "test", "staging", "production"] = Field(
        "local", description="Anything but `local` refuses default secrets."
    )
    data_dir: types.Directory = Field(
        Path("k2-data"), description="Embedded log, SQLite catalog, lake files, file registry."
    )
    roles: StringList = Field(
        ROLES, description=f"Agents this worker runs, comma separated: {', '.join(ROLES)}."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Lowest level that is logged."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="`auto`: JSON unless standard error is a terminal."
    )
    app_id: types.AppId = Field(
        "k2", description="Faust app id: consumer group and prefix of changelog topics."
    )
    exchanges: StringList = Field(
        ("binance",),
        description=f"What this platform carries, comma separated: {', '.join(FEED_TOPICS)}, and "
        "`{asset class}.{exchange}` for tapes, e.g. `equities.asx`. The same on all workers.",
    )

    reference: bool = Field(
        False,
        description="Carry a topic of reference data per exchange (`k2 load reference`); what is "
        "loaded already can be queried without. The same on all workers.",
    )

    @field_validator("exchanges")
    @classmethod
    def _known_exchanges(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        try:
            topics_of(names)
        except ConfigError as exc:
            raise ValueError(exc.message) from exc
        return names

    @field_validator("roles")
    @classmethod
    def _known_roles(cls, roles: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(roles) - set(ROLES))
        if unknown or not roles:
            raise ValueError(f"one or more of {', '.join(ROLES)}, comma separated")
        return roles


def _partitions(given: dict[str, Any]) -> int:
    """Each partition brings its few records as batches of its own, which costs a single worker."""
    return 16 if given.get("bootstrap_servers") else 1


class Kafka(Group):
    """The log. Without `K2_KAFKA_BOOTSTRAP_SERVERS` it is embedded in the data directory."""

    model_config = SettingsConfigDict(
        env_prefix="K2_KAFKA_", env_file=".env", extra="ignore", frozen=True
    )

    bootstrap_servers: types.Servers = Field(
        "", description="host:port, comma separated; empty: the embedded log."
    )
    schema_registry_url: types.HttpUrls = Field(
        "",
        description="Confluent-compatible registry; empty: a file registry in the data directory.",
    )
    schema_registry_username: str = Field("", description="For basic authentication.")
    schema_registry_password: SecretStr = Field(
        SecretStr(""), description="For basic authentication."
    )
    schema_registry_ca_file: types.OptionalFile = Field(
        "", description="CA bundle for a registry at https://; empty: the system's."
    )
    partitions: int = Field(
        default_factory=_partitions,
        ge=1,
        le=1024,
        description="Of every market topic; immutable once topics exist. 16 by default with Kafka; "
        "one with the embedded log, whose only worker would have all of them.",
    )
    replication: int = Field(1, ge=1, description="Replicas of each topic; 3 in production.")
    compression: Literal["lz4", "zstd", "snappy", "gzip", "none"] = Field(
        "lz4", description="Codec of the record batches K2 writes."
    )
    linger_ms: int = Field(
        10, ge=0, description="Milliseconds a small batch waits for company before it is sent."
    )
    max_batch_bytes: int = Field(
        1_000_000,
        ge=16_384,
        description="Largest record batch K2 writes, bytes before compression.",
    )
    max_message_bytes: int = Field(
        8_388_608, ge=1_048_576, description="`max.message.bytes` of K2's topics."
    )
    batch_records: int = Field(
        8_192,
        ge=1,
        description="Records folded into one event; bounds how long an event holds the loop.",
    )
    session_timeout_s: float = Field(
        15.0, gt=0, description="Seconds without heartbeat until a worker's partitions move."
    )
    request_timeout_s: float = Field(
        40.0, gt=0, description="Seconds; must be above the session timeout."
    )
    start_timeout_s: float = Field(
        60.0, gt=0, description="Seconds a worker that starts waits for a log that is not there."
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="Passed to every Kafka client."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "PLAIN", description="With a SASL protocol."
    )
    sasl_username: str = Field("", description="With a SASL protocol.")
    sasl_password: SecretStr = Field(SecretStr(""), description="With a SASL protocol.")
    ssl_ca_file: types.OptionalFile = Field(
        "", description="CA bundle for an SSL protocol; empty: the system's."
    )
    ssl_cert_file: types.OptionalFile = Field(
        "", description="Our certificate (PEM), where the brokers ask for one."
    )
    ssl_key_file: types.OptionalFile = Field("", description="Its private key (PEM).")
    ssl_key_password: SecretStr = Field(SecretStr(""), description="Of an encrypted private key.")
    retention_days: int = Field(90, ge=1, description="Of the logs of record, days.")
    fsync_s: float = Field(
        1.0, ge=0, description="Embedded log: seconds between fsyncs; 0 syncs every append."
    )


class Validate(Group):
    """Rules and continuity."""

    model_config = SettingsConfigDict(
        env_prefix="K2_VALIDATE_", env_file=".env", extra="ignore", frozen=True
    )

    max_future_s: float = Field(
        300.0,
        gt=0,
        description="An exchange time this far after our receive time is an error, not skew.",
    )
    max_age_days: float = Field(
        3_660.0, gt=0, description="An exchange time older than this is an error."
    )
    checkpoint_s: float = Field(
        5.0, gt=0, description="Seconds between checkpoints of continuity state."
    )
    max_symbols: int = Field(
        10_000, ge=1, description="Symbols whose continuity is held per partition."
    )
    group_records: int = Field(
        4_096, ge=1, description="Most records in one emitted group (one Kafka record batch)."
    )
    dlq_max_consecutive: int = Field(
        1_000,
        ge=0,
        description="Records of a partition refused in a row that stop the worker: more is a bad "
        "deploy, not bad data; 0: no limit.",
    )
    dlq_max_ratio: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of a partition's last `K2_VALIDATE_DLQ_WINDOW` records that may be "
        "refused before the worker stops; 0: no limit.",
    )
    dlq_window: int = Field(
        10_000, ge=1, description="Records over which the share of refused ones is taken."
    )


class Query(Group):
    """SQL over hot and cold rows."""

    model_config = SettingsConfigDict(
        env_prefix="K2_QUERY_", env_file=".env", extra="ignore", frozen=True
    )

    pool_size: int = Field(5, ge=1, le=64, description="Queries that run at once.")
    queue_size: int = Field(100, ge=0, description="Queries that wait; more get 429.")
    timeout_s: float = Field(30.0, gt=0, description="Seconds until a query is interrupted.")
    memory_limit_mb: int = Field(1_024, ge=64, description="DuckDB's memory limit, MB.")
    threads: int = Field(2, ge=1, description="DuckDB's threads, shared by all queries.")
    max_rows: int = Field(100_000, ge=1, description="Most rows an answer may hold.")
    tail_minutes: float = Field(15.0, gt=0, description="How long hot rows are kept at most.")
    tail_max_mb: int = Field(
        512,
        ge=16,
        description="MB of hot rows, of all tables together; above it answers are marked partial.",
    )
    refresh_s: float = Field(
        1.0, gt=0, description="Seconds between looks for a newer lake snapshot."
    )


class Api(Group):
    """The HTTP interface."""

    model_config = SettingsConfigDict(
        env_prefix="K2_API_", env_file=".env", extra="ignore", frozen=True
    )

    host: types.Host = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=1, le=65535, description="Port to listen on.")
    key: SecretStr = Field(
        SecretStr(LOCAL_API_KEY), description="X-API-Key; the default only in `local`."
    )
    keys: SecretStr = Field(
        SecretStr(""),
        description="Further keys: a JSON list of what `k2 key NAME` prints (only hashes).",
    )
    rate_per_minute: int = Field(
        60_000,
        ge=0,
        le=10_000_000,
        description="Requests a minute of `K2_API_KEY` and of keys that name no rate; 0: no limit.",
    )
    cors_origins: StringList = Field(
        (), description="Origins whose scripts may ask, comma separated: `https://host:port`."
    )
    max_body_bytes: int = Field(10_485_760, ge=1_024, description="Largest request body.")


class Degradation(Group):
    """When the platform does less."""

    model_config = SettingsConfigDict(
        env_prefix="K2_DEGRADATION_", env_file=".env", extra="ignore", frozen=True
    )

    lag_soft: int = Field(100_000, ge=1, description="Messages of lag that mean SOFT.")
    lag_graceful: int = Field(500_000, ge=1, description="Messages of lag that mean GRACEFUL.")
    lag_aggressive: int = Field(1_000_000, ge=1, description="Messages: AGGRESSIVE.")
    lag_break: int = Field(5_000_000, ge=1, description="Messages: CIRCUIT_BREAK.")
    memory_limit_mb: int = Field(
        0, ge=0, description="Memory of this worker, MB; 0: the cgroup's limit, else the host's."
    )
    cooldown_s: float = Field(30.0, ge=0, description="Seconds before the level may fall.")
    interval_s: float = Field(1.0, gt=0, description="Seconds between looks at lag and memory.")
    exempt: bool = Field(False, description="Loads, replays and benchmarks: never degrade.")
    source_yields: bool = Field(
        True,
        description="From AGGRESSIVE on a worker's sessions give way while its validation is "
        "behind; off: they read all they can, and tier 1 may fall behind as well.",
    )
    tiers_file: types.OptionalFile = Field(
        "", description="JSON: asset class -> {tier1: [...], tier2: [...]}; empty: K2's own list."
    )


class Settings(BaseModel):
    """All groups."""

    core: Core
    kafka: Kafka
    iceberg: Iceberg
    sink: Sink
    candles: Candles
    binance: Binance
    binance_futures: BinanceFutures
    kraken: Kraken
    coinbase: Coinbase
    validate_: Validate
    query: Query
    api: Api
    degradation: Degradation
    breaker: Breaking
    tracing: Tracing
    maintain: Maintain

    @property
    def embedded(self) -> bool:
        """True when the log lives in the data directory."""
        return not self.kafka.bootstrap_servers

    @property
    def topics(self) -> tuple[MarketTopic, ...]:
        """The logs of record of the exchanges this platform carries."""
        named = topics_of(self.core.exchanges)
        feeds = dict.fromkeys(name for name in self.core.exchanges if name in FEED_TOPICS)
        more = [topic for name in feeds for topic in self.more_topics(name)]
        markets = dict.fromkeys((topic.asset_class, topic.exchange) for topic in named)
        if self.core.reference:
            more += [MarketTopic(of, "reference_data", exchange) for of, exchange in markets]
        return (*named, *more)

    def more_topics(self, feed: str) -> tuple[MarketTopic, ...]:
        """Logs of record of channels that a feed is asked for beyond the usual."""
        return channel_topics(feed, getattr(self, feed).streams)


GROUPS: dict[str, type[Group]] = {
    "core": Core,
    "kafka": Kafka,
    "iceberg": Iceberg,
    "sink": Sink,
    "candles": Candles,
    "binance": Binance,
    "binance_futures": BinanceFutures,
    "kraken": Kraken,
    "coinbase": Coinbase,
    "validate_": Validate,
    "query": Query,
    "api": Api,
    "degradation": Degradation,
    "breaker": Breaking,
    "tracing": Tracing,
    "maintain": Maintain,
}


def variable(group: type[Group], field: str) -> str:
    """The environment variable of a field."""
    return f"{group.model_config.get('env_prefix', '')}{field}".upper()


def load_settings() -> Settings:
    """Read all groups. Raises `ConfigError` naming every wrong variable and what is allowed."""
    groups: dict[str, Group] = {}
    wrong: dict[str, str] = {}
    for name, group in GROUPS.items():
        try:
            groups[name] = group()
        except ValidationError as exc:
            wrong |= {variable(group, field): text for field, text in _wrong(group, exc).items()}
    if wrong:
        told = "; ".join(f"{name}{text}" for name, text in wrong.items())
        raise ConfigError(f"{told} (see docs/configuration.md)", variable=next(iter(wrong)))
    settings = Settings.model_validate(groups)
    _check(settings)
    return settings


def _wrong(group: type[Group], exc: ValidationError) -> dict[str, str]:
    """What is wrong with each field, by name: its value and what is allowed."""
    found: dict[str, str] = {}
    for error in exc.errors():
        field = str(error["loc"][0]) if error["loc"] else "?"
        secret = any(word in field for word in ("secret", "password", "key"))
        value = error.get("input")
        shown = ",".join(value) if isinstance(value, tuple) else str(value)
        shown = "(hidden)" if secret else repr(types.without_password(shown))
        known = group.model_fields.get(field)
        message = error["msg"].removeprefix("Value error, ")
        words = (types.allowed(known) if known else "") or message
        found.setdefault(field, f"={shown} is not usable; allowed: {words}")
    return found


_PLANS: Final[dict[str, Callable[..., object]]] = {
    "binance": plan_sessions,
    "binance_futures": functools.partial(plan_sessions, exchange="BINANCE_FUTURES"),
    "kraken": plan_kraken,
    "coinbase": plan_coinbase,
}


def _check(settings: Settings) -> None:
    key_ring(settings)
    key, others = settings.api.key.get_secret_value(), settings.api.keys.get_secret_value()
    if settings.core.environment != "local" and key == LOCAL_API_KEY and not others:
        raise ConfigError(
            f"K2_API_KEY has the default of the local environment while K2_ENVIRONMENT is "
            f"{settings.core.environment!r}; set a key of your own",
            variable="K2_API_KEY",
        )
    kafka = settings.kafka
    if kafka.session_timeout_s >= kafka.request_timeout_s:
        raise ConfigError(
            f"K2_KAFKA_SESSION_TIMEOUT_S={kafka.session_timeout_s} must be below "
            f"K2_KAFKA_REQUEST_TIMEOUT_S={kafka.request_timeout_s}",
            variable="K2_KAFKA_SESSION_TIMEOUT_S",
        )
    check_services(kafka, settings.iceberg)
    for name, plan in _PLANS.items():
        feed: Feed = getattr(settings, name)
        plan(feed.symbols, feed.streams, per_session=feed.symbols_per_session)


def key_ring(settings: Settings) -> KeyRing:
    """The API keys as configured. Raises `ConfigError` for entries that are not usable."""
    api, secret = settings.api, settings.api.key.get_secret_value()
    further = parse_keys(api.keys.get_secret_value(), per_minute=api.rate_per_minute)
    if secret == LOCAL_API_KEY and settings.core.environment != "local":
        # Everybody knows it.
        return KeyRing(further)
    return KeyRing.single(secret, per_minute=api.rate_per_minute).plus(further)


@functools.cache
def settings() -> Settings:
    """The process's settings, read once."""
    return load_settings()
