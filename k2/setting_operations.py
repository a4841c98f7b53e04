"""Settings of what surrounds the pipeline: circuit breakers and traces."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from k2 import setting_types as types
from k2.setting_group import Group


class Breaking(Group):
    """When a service that keeps failing is left alone: catalog, store, registry, REST, queries."""

    model_config = SettingsConfigDict(
        env_prefix="K2_BREAKER_", env_file=".env", extra="ignore", frozen=True
    )

    failures: int = Field(5, ge=1, description="Failures in a row that open a circuit.")
    successes: int = Field(2, ge=1, description="Good answers in a row that close it.")
    open_s: float = Field(60.0, gt=0, description="Seconds an open circuit refuses calls.")


class Tracing(Group):
    """Traces by OpenTelemetry. Without `K2_TRACING_OTLP_ENDPOINT` there are none."""

    model_config = SettingsConfigDict(
        env_prefix="K2_TRACING_", env_file=".env", extra="ignore", frozen=True
    )

    otlp_endpoint: types.HttpUrl = Field(
        "", description="OTLP over HTTP, e.g. `http://collector:4318`; empty: no traces."
    )
    sample_ratio: float = Field(
        0.1, ge=0, le=1, description="Share of frame batches and requests that are traced."
    )
    service_name: str = Field("k2", description="`service.name` of the spans.")
