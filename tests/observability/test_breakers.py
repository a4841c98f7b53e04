"""Circuit breakers as Prometheus sees them, from before their first failure on."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from k2.breaker import Limits
from k2.breakers import Breaker
from k2.errors import Overloaded
from k2.testing.clock import ManualClock


def shown(name: str) -> float | None:
    return REGISTRY.get_sample_value(f"k2_circuit_breaker_{name}", {"breaker_name": "seen"})


def test_everything_counts_from_zero() -> None:
    Breaker("seen", Limits(failures=2, successes=1, open_s=60.0), ManualClock())
    names = ("failures_total", "rejections_total", "opened_total", "consecutive_failures")
    assert [shown(name) for name in names] == [0, 0, 0, 0]


def test_openings_failures_in_a_row_and_refusals() -> None:
    breaker = Breaker("seen", Limits(failures=2, successes=1, open_s=60.0), ManualClock())
    opened, refused = shown("opened_total") or 0, shown("rejections_total") or 0
    breaker.failed(OSError("gone"))
    assert (shown("consecutive_failures"), shown("opened_total")) == (1, opened)
    breaker.failed(OSError("gone"))
    assert (shown("consecutive_failures"), shown("opened_total")) == (2, opened + 1)
    with pytest.raises(Overloaded):
        breaker.enter()
    assert shown("rejections_total") == refused + 1
    breaker.succeeded()
    assert (shown("consecutive_failures"), shown("state")) == (0, 0)
