"""The leak watch tells steady growth from ups and downs."""

from __future__ import annotations

import random

import pytest

from k2.vitals import LeakWatch

MB = 2**20


def watched(rss_mb: list[float]) -> float:
    watch = LeakWatch()
    for number, value in enumerate(rss_mb):
        watch.add(number * 30.0, value * MB)
    return watch.score()


def test_too_few_samples_say_nothing() -> None:
    assert watched([100 + 50 * n for n in range(9)]) == 0.0


@pytest.mark.parametrize(("mb_per_h", "score"), [(50, 1.0), (25, 0.5), (500, 1.0), (-50, 0.0)])
def test_steady_growth_scores_by_its_slope(mb_per_h: float, score: float) -> None:
    assert watched([1000 + mb_per_h * n / 120 for n in range(120)]) == pytest.approx(score)


def test_flat_and_noisy_memory_is_no_leak() -> None:
    noise = random.Random(1)
    assert watched([500.0] * 120) == 0.0
    assert watched([500 + noise.uniform(-20, 20) for _ in range(120)]) < 0.1


def test_only_the_last_hour_counts() -> None:
    assert watched([n * 10.0 for n in range(120)] + [1200.0] * 120) == 0.0
