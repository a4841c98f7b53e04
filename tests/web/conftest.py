from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.query.conftest import platform
from tests.web.api import Api, running

__all__ = ["api", "platform"]


@pytest.fixture
async def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    async with running(tmp_path / "data", monkeypatch) as made:
        yield made
