"""Repeated errors: few are written, none is forgotten, and what is new is always told."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from k2.log_sampling import Sampler, Sampling


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 40)), max_size=200))
def test_few_a_window_and_every_one_is_counted(lines: list[tuple[str, float]]) -> None:
    sampler, now_s = Sampler(per_window=5, window_s=60.0), 0.0
    told: dict[str, list[tuple[float, int]]] = {}
    came: dict[str, int] = {}
    waiting: dict[str, int] = {}
    for key, pause_s in lines:
        now_s += pause_s
        came[key] = came.get(key, 0) + 1
        left_out = sampler.take(key, now_s)
        if left_out is None:
            waiting[key] = waiting.get(key, 0) + 1
            assert len([1 for at_s, _ in told[key] if now_s - at_s < 60.0]) >= 5
        else:
            assert left_out == waiting.pop(key, 0)
            told.setdefault(key, []).append((now_s, left_out))
    for key, count in came.items():
        assert count == sum(1 + left_out for _, left_out in told[key]) + waiting.get(key, 0)
        assert told[key][0][1] == 0, "the first of a kind is told"


def record(msg: object, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("k2.x", level, "x.py", 1, msg, (), None)


def test_the_same_about_something_else_is_something_else() -> None:
    now_s = 0.0
    sampling = Sampling(lambda: now_s)
    say = [record({"event": "lake_retry", "table": "trades", "tries": n}) for n in range(9)]
    assert [sampling.filter(one) for one in say] == [True] * 5 + [False] * 4
    assert sampling.filter(record({"event": "lake_retry", "table": "quotes"}))
    assert sampling.filter(record({"event": "lake_retry", "table": "trades"}, logging.ERROR))
    now_s = 61.0
    again = record({"event": "lake_retry", "table": "trades"})
    assert sampling.filter(again)
    assert again.msg["suppressed"] == 4
    assert all(sampling.filter(record("calm", logging.INFO)) for _ in range(100))


def test_other_libraries_lines_are_sampled_by_their_template() -> None:
    now_s = 0.0
    sampling = Sampling(lambda: now_s)
    lines = [logging.LogRecord("aiokafka", 30, "x", 1, "%s is away", (n,), None) for n in range(7)]
    assert [sampling.filter(one) for one in lines] == [True] * 5 + [False] * 2
    now_s = 61.0
    assert sampling.filter(lines[0])
    assert lines[0].getMessage() == "0 is away (and 2 like it that were left out)"


def test_a_process_logs_that_way() -> None:
    code = """
from k2.log import configure
from k2.settings import load_settings
import structlog
configure(load_settings())
for n in range(50):
    structlog.get_logger("k2.x").warning("again", table="trades", n=n)
structlog.get_logger("k2.x").info("calm")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    events = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert events == ["again"] * 5 + ["calm"]
