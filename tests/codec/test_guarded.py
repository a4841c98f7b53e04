"""A registry that is away is asked five times, then left alone; one that answers no is not away."""

from __future__ import annotations

from pathlib import Path

import pytest

from k2.breaker import Limits, State
from k2.breakers import Breaker
from k2.codec.guarded import GuardedRegistry
from k2.codec.http_registry import HttpRegistry
from k2.codec.registry import FileRegistry
from k2.codec.schemas import schema_text
from k2.dev.process import free_ports
from k2.errors import RegistryUnavailableError, SchemaIncompatibleError, SchemaNotFoundError
from k2.testing.clock import ManualClock


def test_a_registry_that_is_away_is_left_alone() -> None:
    (port,) = free_ports(1)
    breaker = Breaker("registry", Limits(), ManualClock(), RegistryUnavailableError)
    away = HttpRegistry(f"http://127.0.0.1:{port}", timeout_s=1.0, retries=0)
    registry = GuardedRegistry(away, breaker)
    for _ in range(5):
        with pytest.raises(RegistryUnavailableError, match="K2_KAFKA_SCHEMA_REGISTRY_URL"):
            registry.schema(1)
    with pytest.raises(RegistryUnavailableError, match="left alone for 60 s"):
        registry.latest("subject")
    away.close()


def test_a_refusal_is_an_answer(tmp_path: Path) -> None:
    breaker = Breaker("registry", Limits(failures=1), ManualClock(), RegistryUnavailableError)
    registry = GuardedRegistry(FileRegistry(tmp_path), breaker)
    ident = registry.register("trades", schema_text("trades"))
    assert registry.schema(ident)
    assert registry.latest("trades").schema_id == ident
    with pytest.raises(SchemaNotFoundError):
        registry.schema(ident + 1)
    other = '{"type":"record","name":"Other","fields":[{"name":"x","type":"string"}]}'
    with pytest.raises(SchemaIncompatibleError):
        registry.register("trades", other)
    assert registry.check_compatible("trades", schema_text("trades")) == []
    assert breaker.state is State.CLOSED
