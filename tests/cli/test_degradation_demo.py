"""`k2 demo degradation --quick`: every level is reached by load, and every id is found again."""

from __future__ import annotations

import json

import pytest

from k2.degradation.levels import Level
from tests.cli.test_soak import k2


@pytest.mark.heavy
@pytest.mark.timeout(600)
async def test_the_walk_reaches_every_level_and_loses_nothing() -> None:
    status, lines, told = await k2("demo", "degradation", "--quick", "--json")
    assert status == 0, (lines, told)
    result = json.loads(lines[-1])
    assert result["levels"] == [level.name for level in Level]
    assert result["nothing_lost"]
    assert set(result["shed"]) == {"1", "2", "3"}, "at CIRCUIT_BREAK every tier is put off"
    for kind in ("trades", "quotes"):
        assert result["counts"][kind]["sent"] == result["counts"][kind]["stored"] > 1_000
    assert "→ CIRCUIT_BREAK" in told
    assert "HTTP 503" in told
    assert "→ NORMAL" in told, "and back"
    assert "Nothing was lost" in told
    assert "\x1b[" not in told, "no terminal, no escape codes"
