"""A Confluent-compatible schema registry, through confluent-kafka's client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import structlog
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from k2.codec.registry import COMPATIBILITY, Registered
from k2.errors import (
    RegistryUnavailableError,
    SchemaError,
    SchemaIncompatibleError,
    SchemaNotFoundError,
)
from k2.setting_types import without_password

log = structlog.get_logger(__name__)

_CONFLICT: Final = 409
_NOT_FOUND: Final = 404
_UNPROCESSABLE: Final = 422


class HttpRegistry:
    """`SchemaRegistry` over HTTP. The client retries; calls block, so run them in threads.

    `url`: one address or several, comma separated. `login`: user and password of basic
    authentication, unless they are in the URL. `ca_file`: PEM certificates to trust instead of the
    system's. `timeout_s`: per request.
    """

    def __init__(
        self,
        url: str,
        *,
        login: tuple[str, str] | None = None,
        ca_file: str = "",
        timeout_s: float = 10.0,
        retries: int = 3,
    ) -> None:
        self._url = without_password(url)
        options: dict[str, Any] = {"url": url, "timeout": timeout_s, "max.retries": retries}
        if login is not None:
            options["basic.auth.user.info"] = ":".join(login)
        if ca_file:
            options["ssl.ca.location"] = ca_file
        self._client = SchemaRegistryClient(options)
        self._guarded: set[str] = set()

    def register(self, subject: str, schema_text: str) -> int:
        with self._asking(subject):
            if subject not in self._guarded:
                # Before the first schema: a server's default may be NONE, and an incompatible
                # version once let in stays.
                self._guard(subject)
                self._guarded.add(subject)
            schema_id = self._register(subject, Schema(schema_text, "AVRO"))
        log.info("schema registered", subject=subject, id=schema_id, registry=self._url)
        return schema_id

    def _register(self, subject: str, schema: Schema) -> int:
        try:
            return int(self._client.register_schema(subject, schema))
        except SchemaRegistryError as exc:
            if exc.http_status_code != _CONFLICT:
                raise
            # Apicurio's answer to the second of two workers that register it at the same moment.
            return self._registered(subject, schema, exc)

    def _registered(self, subject: str, schema: Schema, refused: SchemaRegistryError) -> int:
        try:
            return int(self._client.lookup_schema(subject, schema).schema_id)
        except SchemaRegistryError as exc:
            raise refused from exc

    def _guard(self, subject: str) -> None:
        try:
            self._client.set_compatibility(subject_name=subject, level=COMPATIBILITY)
        except SchemaRegistryError as exc:
            # Workers that start together set it together, and Apicurio refuses all but one.
            if exc.http_status_code != _CONFLICT or self._level(subject) != COMPATIBILITY:
                raise

    def _level(self, subject: str) -> str:
        return str(self._client.get_compatibility(subject_name=subject))

    def schema(self, schema_id: int) -> str:
        with self._asking(f"id {schema_id}"):
            return str(self._client.get_schema(schema_id).schema_str)

    def latest(self, subject: str) -> Registered:
        with self._asking(subject):
            # The client remembers the latest version for ever otherwise.
            self._client.clear_latest_caches()
            found = self._client.get_latest_version(subject)
        return Registered(subject, found.version, found.schema_id, found.schema.schema_str)

    def check_compatible(self, subject: str, schema_text: str) -> list[str]:
        with self._asking(subject):
            try:
                fits = self._client.test_compatibility(subject, Schema(schema_text, "AVRO"))
            except SchemaRegistryError as exc:
                if exc.http_status_code == _NOT_FOUND:
                    return []
                raise
        return [] if fits else [f"registry {self._url} answers: not {COMPATIBILITY} compatible"]

    def close(self) -> None:
        """Give up the connections."""
        self._client.close()

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        try:
            yield
        except SchemaRegistryError as exc:
            raise _translated(exc, what, self._url) from exc
        except (OSError, ValueError) as exc:
            raise self._unavailable(exc) from exc
        except Exception as exc:
            # The client lets errors of its HTTP library through (httpx or httpx2, by version).
            if not type(exc).__module__.startswith(("httpx", "httpcore")):
                raise
            raise self._unavailable(exc) from exc

    def _unavailable(self, exc: Exception) -> RegistryUnavailableError:
        return RegistryUnavailableError(
            f"schema registry {self._url} cannot be asked: {exc}; check "
            "K2_KAFKA_SCHEMA_REGISTRY_URL and that the server is up",
            url=self._url,
        )


def _translated(exc: Any, what: str, url: str) -> SchemaError:
    """K2's error for the registry's answer, with the registry's own words."""
    said = f"schema registry {url} on {what}: {exc.error_message} (code {exc.error_code})"
    facts = {"status": exc.http_status_code, "error_code": exc.error_code}
    if exc.http_status_code == _CONFLICT:
        return SchemaIncompatibleError(f"{said}; the schema must be {COMPATIBILITY} compatible")
    if exc.http_status_code == _NOT_FOUND:
        return SchemaNotFoundError(said, **facts)
    if exc.http_status_code == _UNPROCESSABLE:
        return SchemaError(said, **facts)
    return RegistryUnavailableError(said, **facts)
