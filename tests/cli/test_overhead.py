"""What watching costs: the arithmetic, the worker that does none of it, and a run of both."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from k2.cli.bench.overhead import cost
from tests.cli.test_soak import k2

SILENT = """
import logging
from k2.cli.bench.bare import silence
silence()
from prometheus_client import generate_latest
from k2 import metrics
metrics.CONSUMED.labels("topic", "agent").inc(5)
metrics.VALIDATE_SECONDS.labels("topic").observe(1.0)
metrics.DEGRADATION_LEVEL.set(3)
text = generate_latest().decode()
assert 'topic="topic"' not in text, text
assert "k2_degradation_level 0.0" in text, text
assert not logging.getLogger("k2").isEnabledFor(logging.CRITICAL)
"""


def test_a_cost_is_that_of_the_pairs_with_its_interval() -> None:
    same = cost([100, 80, 120], [105, 84, 126])
    assert (same.percent, same.low, same.high) == (5.0, 5.0, 5.0)
    apart = cost([100, 100, 100, 100], [104, 98, 103, 99])
    assert apart.low < 0 < apart.percent < apart.high


def test_a_bare_worker_counts_and_says_nothing() -> None:
    subprocess.run([sys.executable, "-c", SILENT], check=True)


@pytest.mark.heavy
@pytest.mark.timeout(400)
async def test_both_workers_store_everything_and_only_one_is_watched() -> None:
    # What it costs is for the long run: two pairs of short ones tell nothing of 5 %.
    _, lines, told = await k2("bench", "overhead", "--records", "50000", "--pairs", "2", "--json")
    assert lines, told
    result = json.loads(lines[-1])
    assert (result["pairs"], len(result["bare_per_s"]), len(result["whole_per_s"])) == (2, 2, 2)
    assert result["scrapes"] >= 2
    assert result["log_lines"] > 0
    assert result["spans_bytes"] > 0
    assert result["throughput"]["low"] <= result["throughput"]["percent"]
