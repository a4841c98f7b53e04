"""What the steps' tests share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from k2.codecs import Codecs
from k2.lakehouse import Lakehouse
from k2.settings import Settings
from k2.steps.row_cache import RowCache
from k2.testing.clock import ManualClock
from k2.testing.log import MemoryLog
from tests.steps.parts import codecs_in, settings_in


@pytest.fixture(scope="session")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Codecs:
    return codecs_in(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def codecs(registered: Codecs) -> Codecs:
    # Tests write different records to the same offsets; a worker never sees that.
    return replace(registered, rows=RowCache())


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    return settings_in(tmp_path / "data", monkeypatch)


@pytest.fixture
def lake(settings: Settings, clock: ManualClock) -> Iterator[Lakehouse]:
    opened = Lakehouse.open(settings, clock)
    yield opened
    opened.close()
    opened.catalog.close()
