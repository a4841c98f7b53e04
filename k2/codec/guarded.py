"""A registry behind a circuit breaker: one that is away is not asked for every record."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from k2.breakers import Breaker
from k2.codec.registry import Registered, SchemaRegistry
from k2.errors import RegistryUnavailableError

T = TypeVar("T")


class GuardedRegistry:
    """`SchemaRegistry`; a refusal is a `RegistryUnavailableError`, as the outage itself is."""

    def __init__(self, registry: SchemaRegistry, breaker: Breaker) -> None:
        self._registry = registry
        self._breaker = breaker

    def register(self, subject: str, schema_text: str) -> int:
        return self._ask(lambda: self._registry.register(subject, schema_text))

    def schema(self, schema_id: int) -> str:
        return self._ask(lambda: self._registry.schema(schema_id))

    def latest(self, subject: str) -> Registered:
        return self._ask(lambda: self._registry.latest(subject))

    def check_compatible(self, subject: str, schema_text: str) -> list[str]:
        return self._ask(lambda: self._registry.check_compatible(subject, schema_text))

    def _ask(self, call: Callable[[], T]) -> T:
        with self._breaker.guarding(lambda exc: isinstance(exc, RegistryUnavailableError)):
            return call()
