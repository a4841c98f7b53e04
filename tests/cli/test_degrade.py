"""`k2 degrade status`: what all workers add up to, and which of them there are."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from k2.cli import degrade

ANSWERS: dict[str, Any] = {
    "/v1/degradation": {"level": "GRACEFUL", "reason": "lag 7", "override": None, "history": []},
    "/v1/shed": {"pending": 12, "brought": 3, "ranges": []},
}


def worker(name: str, lag: int, age_s: float) -> dict[str, Any]:
    load = {"lag": lag, "memory": 0.256, "level": "GRACEFUL", "age_s": age_s}
    return {"worker": name, "roles": ["sink", "control"], **load}


def printed(monkeypatch: pytest.MonkeyPatch, workers: list[Any], *options: str) -> str:
    answers = {**ANSWERS, "/v1/workers": workers}
    monkeypatch.setattr(degrade, "_ask", lambda _method, path: answers[path])
    result = CliRunner().invoke(degrade.degrade, ["status", *options], catch_exceptions=False)
    return result.output


def test_several_workers_are_listed_with_their_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(monkeypatch, [worker("sink-a-1", 3, 0), worker("s-2", 4, 2.4)])
    assert text.splitlines() == [
        "GRACEFUL: lag 7",
        "12 records are put off, 3 were stored after all",
        "2 workers, 7 messages of lag",
        "  worker    roles         lag  memory  level     told",
        "  sink-a-1  sink,control  3    26%     GRACEFUL  0 s ago",
        "  s-2       sink,control  4    26%     GRACEFUL  2 s ago",
    ]


def test_one_worker_is_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(monkeypatch, [worker("k-1", 7, 0)])
    assert text.splitlines()[1:] == ["12 records are put off, 3 were stored after all"]


def test_programs_get_the_workers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(printed(monkeypatch, [worker("k-1", 7, 0)], "--json"))
    assert (found["level"], found["shed"]["pending"]) == ("GRACEFUL", 12)
    assert [one["worker"] for one in found["workers"]] == ["k-1"]
