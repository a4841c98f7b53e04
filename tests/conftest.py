from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.services.kafka", "tests.services.stack"]

# A machine with other work makes examples slowly; that says nothing of the code.
settings.register_profile("k2", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("k2")

_configure = structlog.configure


def _uncached(*args: Any, **options: Any) -> None:
    # A logger that is cached keeps the configuration of its first use for ever, and
    # `capture_logs` of later tests would not see it.
    _configure(*args, **{**options, "cache_logger_on_first_use": False})


structlog.configure = _uncached


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """Commands that run inside a test configure logging; the next test must not notice."""
    before = structlog.get_config()
    yield
    _configure(**before)
