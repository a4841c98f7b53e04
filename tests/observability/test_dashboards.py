"""Every panel's query is understood by Prometheus and has data after a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.observability.conftest import Run
from tools.dashboards import TARGET, pages

pytestmark = pytest.mark.timeout(180)

FILES = sorted(TARGET.glob("*.json"))
#: Grafana puts the interval in; the run is scraped every second.
_INTERVAL = "10s"


def expressions() -> list[tuple[str, str, str]]:
    return [
        (path.stem, f"{panel['title']}: {target['legendFormat']}", target["expr"])
        for path in FILES
        for panel in json.loads(path.read_text())["panels"]
        for target in panel["targets"]
    ]


def test_files_are_what_the_tool_writes() -> None:
    assert {path.name: path.read_text() for path in FILES} == pages(), "run `make docs`"


def test_the_interval_of_rates_is_chosen_on_the_board() -> None:
    for path in FILES:
        variables = json.loads(path.read_text())["templating"]["list"]
        assert [one["name"] for one in variables] == ["datasource", "interval"]
    used = [expression for *_, expression in expressions() if "rate(" in expression]
    assert all("[$interval]" in expression for expression in used)


def test_panels_do_not_overlap() -> None:
    for path in FILES:
        places = [
            tuple(p["gridPos"].values()) for p in json.loads(Path(path).read_text())["panels"]
        ]
        assert len(set(places)) == len(places)


@pytest.mark.parametrize(("board", "panel", "expression"), expressions())
def test_panel_has_data(run: Run, board: str, panel: str, expression: str) -> None:
    query = expression.replace("$interval", _INTERVAL)
    # The worker has stopped since: what was there while it ran counts.
    series = run.prometheus.get(
        "/api/v1/query_range",
        query=query,
        start=str(run.ended_s - 30),
        end=str(run.ended_s),
        step="1",
    )["result"]
    values = [value for one in series for _, value in one["values"]]
    assert [value for value in values if value != "NaN"], f"{board}, {panel}: {query}"
