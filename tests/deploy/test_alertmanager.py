"""The Alertmanager's configuration: valid to amtool, and every alert is routed where it belongs."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
import yaml

from tests.deploy.test_compose import ROOT, SERVICES
from tests.services.prometheus import RULES
from tests.services.require import require_programs

FILE = ROOT / "deploy/alertmanager/alertmanager.yml"
CONFIG: dict[str, Any] = yaml.safe_load(FILE.read_text())
ALERTS = [
    rule
    for path in RULES
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
]
RECEIVERS = {"critical": "page", "high": "team", "medium": "team"}


def amtool(*arguments: str) -> str:
    require_programs("prometheus-alertmanager", "amtool")
    done = subprocess.run(["amtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_amtool_takes_it() -> None:
    assert "2 receivers" in amtool("check-config", str(FILE))


@pytest.mark.parametrize("severity", sorted(RECEIVERS))
def test_a_severity_reaches_its_receiver(severity: str) -> None:
    labels = (f"severity={severity}", "alertname=Anything")
    found = amtool("config", "routes", "test", "--config.file", str(FILE), *labels)
    assert found.strip() == RECEIVERS[severity]


def test_every_alert_has_a_severity_that_is_routed() -> None:
    assert {rule["labels"]["severity"] for rule in ALERTS} <= set(RECEIVERS)


def test_inhibitions_name_alerts_that_exist() -> None:
    names = [rule["alert"] for rule in ALERTS]
    for rule in CONFIG["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            split = re.fullmatch(r'(\w+)(=~|!=|=)"([^"]+)"', matcher)
            assert split is not None, matcher
            if split[1] == "alertname":
                for one in split[3].split("|"):
                    assert any(re.fullmatch(one, name) for name in names), one


def test_prometheus_sends_to_the_one_in_the_stack() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (target,) = config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    assert target == "alertmanager:9093"
    service = SERVICES["alertmanager"]
    mounts = [mount.split(":") for mount in service["volumes"]]
    inside = {target: source for source, target, *_ in mounts}
    (file,) = [part for part in service["command"] if part.startswith("--config.file=")]
    folder, _, name = file.removeprefix("--config.file=").rpartition("/")
    assert (ROOT / inside[folder] / name).resolve() == FILE.resolve()
