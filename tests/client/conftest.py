from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from k2.client import K2Client
from tests.web.api import Api
from tests.web.conftest import api

__all__ = ["api", "client"]


@pytest.fixture
async def client(api: Api) -> AsyncIterator[K2Client]:
    async with K2Client(str(api.client.make_url("")), key="right") as made:
        yield made
