"""Every name of the requirements leads to something that is exported, or to a reason."""

from __future__ import annotations

import pytest
from prometheus_client import Counter, Info
from prometheus_client.metrics import MetricWrapperBase

from k2 import metrics
from k2.metric_names import ALERTS, NAMES, page_part
from tests.observability import test_alerts


def exported() -> set[str]:
    found = set()
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            suffix = {Counter: "_total", Info: "_info"}.get(type(metric), "")
            found.add(next(iter(metric.describe())).name + suffix)
    return found


@pytest.mark.parametrize("asked", NAMES)
def test_a_required_metric_is_exported_or_has_a_reason(asked: str) -> None:
    ours = NAMES[asked]
    if " " in ours:
        assert ours.startswith("none: ")
        assert f"k2_{asked}" not in exported()
    else:
        assert f"k2_{ours}" in exported()


def test_required_alerts_have_rules() -> None:
    assert set(ALERTS.values()) <= set(test_alerts.ALERTS)
    assert not set(ALERTS) & set(test_alerts.ALERTS)


def test_the_page_has_every_name_that_changed() -> None:
    page = "\n".join(page_part())
    assert all(f"`k2_{asked}`" in page for asked, ours in NAMES.items() if asked != ours)
