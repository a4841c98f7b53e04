from __future__ import annotations

import asyncio
from collections import Counter
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse tests that share an id: processes beside each other would run one of them."""
    times = Counter(item.nodeid for item in items)
    name, most = max(times.items(), key=lambda pair: pair[1], default=("", 0))
    if most > 1:
        raise pytest.UsageError(f"{most} tests are called {name}; give each an id of its own")


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """Commands that run inside a test configure logging; the next test must not notice."""
    before = structlog.get_config()
    yield
    _configure(**before)


@pytest.fixture
async def lost() -> list[dict[str, Any]]:
    """What the event loop was told because nobody else took it: exceptions of forgotten futures."""
    found: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
    return found
