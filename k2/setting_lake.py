"""Settings of the lake: where it is, when it is written, how it is kept."""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from k2 import setting_types as types
from k2.setting_group import Group, StringList


class Iceberg(Group):
    """The lake. Without a catalog URI it is SQLite and files in the data directory."""

    model_config = SettingsConfigDict(
        env_prefix="K2_ICEBERG_", env_file=".env", extra="ignore", frozen=True
    )

    catalog_uri: types.CatalogUri = Field(
        "", description="`http(s)://…` (REST) or `postgresql+psycopg2://…`; empty: SQLite."
    )
    catalog_password: SecretStr = Field(
        SecretStr(""), description="Of a SQL catalog, instead of one in the URI."
    )
    catalog_token: SecretStr = Field(
        SecretStr(""), description="Bearer token of a REST catalog; empty: none."
    )
    warehouse: str = Field("", description="Base location of tables; empty: the data directory.")
    s3_endpoint: types.HttpUrl = Field("", description="S3 endpoint for a warehouse at s3://.")
    s3_access_key: SecretStr = Field(SecretStr(""), description="S3 key id.")
    s3_secret_key: SecretStr = Field(SecretStr(""), description="S3 secret.")
    s3_region: str = Field("us-east-1", description="S3 region.")
    compression: Literal["zstd", "snappy", "lz4", "none"] = Field(
        "zstd", description="Parquet codec."
    )
    commit_retry_s: float = Field(
        60.0, gt=0, description="Seconds a commit is tried again under contention or outage."
    )


class Sink(Group):
    """When the sink commits."""

    model_config = SettingsConfigDict(
        env_prefix="K2_SINK_", env_file=".env", extra="ignore", frozen=True
    )

    batch_size: int = Field(
        1_000, ge=1, description="Rows that make a commit due (also K2_CONSUMER_BATCH_SIZE)."
    )
    interval_s: float = Field(5.0, gt=0, description="Seconds after which any row is due.")
    min_interval_s: float = Field(
        1.0, ge=0, description="Least seconds between two commits of one table."
    )
    max_buffer_mb: int = Field(
        192, ge=16, description="Arrow bytes held for a slow lake before reading pauses."
    )

    @model_validator(mode="before")
    @classmethod
    def _older_name(cls, values: dict[str, Any]) -> dict[str, Any]:
        older = os.environ.get("K2_CONSUMER_BATCH_SIZE")
        return {"batch_size": older, **values} if older is not None else values


class Candles(Group):
    """Candles from the validated trades."""

    model_config = SettingsConfigDict(
        env_prefix="K2_CANDLES_", env_file=".env", extra="ignore", frozen=True
    )

    interval_s: float = Field(
        30.0,
        gt=0,
        description="Seconds between two versions of the open candles in the lake; what is newer "
        "is answered from the trades themselves.",
    )
    exclude_conditions: StringList = Field(
        ("OFF_MARKET",),
        description="Condition codes whose trades make no candle, comma separated: prints far from "
        "the market; after a change run `k2 candles rebuild --write`.",
    )


class Maintain(Group):
    """Keeping the lake small and fast, by the one worker of those with the role `maintain`."""

    model_config = SettingsConfigDict(
        env_prefix="K2_MAINTAIN_", env_file=".env", extra="ignore", frozen=True
    )

    interval_s: float = Field(30.0, gt=0, description="Seconds between rounds.")
    budget_s: float = Field(
        20.0, gt=0, description="Seconds of a round after which no table's next merge is begun."
    )
    target_file_mb: int = Field(128, ge=1, description="Size of a finished data file, MB.")
    min_files: int = Field(
        12, ge=2, description="Small files of one day and bucket that make a merge due."
    )
    history_days: int = Field(90, ge=1, description="Days that time travel reaches back.")
    orphan_age_h: float = Field(
        72.0,
        ge=1,
        description="Hours after which a file nothing refers to is deleted; above any engine's "
        "longest commit.",
    )
    rows_days: StringList = Field(
        (),
        description="Days after which a table's rows go, `table=days`, comma separated; a table "
        "that is not named keeps them for ever.",
    )

    @field_validator("rows_days")
    @classmethod
    def _days(cls, rules: tuple[str, ...]) -> tuple[str, ...]:
        for rule in rules:
            table, _, days = rule.partition("=")
            if not table or not days.isdecimal() or int(days) < 1:
                raise ValueError(f"{rule!r} is not table=days, such as quotes=30")
        return rules

    def days_of(self, table: str) -> int:
        """Days a table's rows stay; 0: for ever."""
        return {
            name: int(days) for name, _, days in (one.partition("=") for one in self.rows_days)
        }.get(table, 0)
