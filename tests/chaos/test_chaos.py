"""The fault harness in its short form; the long one, with every scenario, is `make chaos`."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from k2.chaos.cluster import Options
from k2.chaos.run import Report, run
from k2.chaos.scenarios import SCENARIOS
from k2.cli.main import cli
from tests.data import BTC_0808, require
from tests.services.require import require_services

#: The worst of each kind.
SHORT = ("kill-after-decode", "kill-before-commit", "kill-after-commit", "disk-full",
         "exchange-reorders")  # fmt: skip
SHORT_KAFKA = ("zombie-rebalance-resend", "kill-worker", "catalog-reply-lost")


def only(*names: str) -> list[object]:
    return [scenario for scenario in SCENARIOS if scenario.name in names]


def test_every_failure_has_a_runbook_with_settings_that_exist() -> None:
    page = Path("docs/runbooks/failures.md").read_text()
    drills = set(re.findall(r"[`\w-]*scenario ([a-z0-9-]+)`|`([a-z0-9-]+)`", page))
    named = {name for found in drills for name in found}
    assert {one.name for one in SCENARIOS} <= named
    settings = Path("docs/configuration.md").read_text()
    for name in set(re.findall(r"\bK2_[A-Z0-9_]+", page)):
        assert f"`{name}`" in settings, name


def assert_held(report: Report, faults: int) -> None:
    shown = report.as_json()
    assert shown["problems"] == [], shown
    assert shown["faults"] == faults
    assert (shown["lost"], shown["duplicated"]) == (0, 0)
    assert shown["landed"] > 0
    assert shown["acknowledged"] == (
        shown["landed"] + shown["dead_letters"] + shown["duplicates_dropped"]
    )
    assert shown["missing_ids"] == shown["gap_ids"]


@pytest.fixture
def directory() -> Iterator[Path]:
    """Open to PostgreSQL's own account, which pytest's directories are not."""
    with tempfile.TemporaryDirectory(prefix="k2-chaos-", ignore_cleanup_errors=True) as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture
def services() -> None:
    require_services("kafka", "registry", "s3", "postgres")


@pytest.mark.timeout(400)
async def test_one_worker_with_the_embedded_log(tmp_path: Path) -> None:
    require(BTC_0808)
    options = Options(tmp_path, embedded=True, captures=(BTC_0808,), seed=7)
    report = await run(options, minutes=2, scenarios=only(*SHORT), rounds=1)
    assert_held(report, len(SHORT))


@pytest.mark.heavy
@pytest.mark.kafka
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("services")
async def test_two_workers_on_kafka(directory: Path) -> None:
    require(BTC_0808)
    options = Options(directory, brokers=1, captures=(BTC_0808,), seed=7)
    report = await run(options, minutes=3, scenarios=only(*SHORT_KAFKA), rounds=1)
    assert_held(report, len(SHORT_KAFKA))


def test_scenarios_are_listed_and_named_once() -> None:
    result = CliRunner().invoke(cli, ["chaos", "--list"])
    names = [line.split()[0] for line in result.output.splitlines()]
    assert names == [scenario.name for scenario in SCENARIOS]
    assert len(names) == len(set(names))


def test_an_unknown_scenario_names_the_known_ones() -> None:
    result = CliRunner().invoke(cli, ["chaos", "--scenario", "flood"])
    assert result.exit_code != 0
    assert "zombie" in result.output
