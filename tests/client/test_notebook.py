"""The notebook runs as it stands, against a real server."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from tests.web.api import Api

NOTEBOOK = Path(__file__).parents[2] / "examples" / "research.ipynb"


async def test_every_cell_runs(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K2_URL", str(api.client.make_url("")))
    monkeypatch.setenv("K2_API_KEY", "right")
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            await _run("".join(cell["source"]), f"cell {number}", names)
    assert (names["symbol"], len(names["trades"])) == ("BTCUSDT", 10)
    assert names["candles"].to_pylist()[0]["trade_count"] == 10
    assert names["by_side"].to_pylist()[0]["trades"] == 10
    assert names["replayed"] == 9, "up to the last trade, without it"


async def _run(source: str, name: str, names: dict[str, Any]) -> None:
    """As Jupyter does: with `await` outside of functions."""
    code = compile(source, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)
    if inspect.iscoroutine(result):
        await result
