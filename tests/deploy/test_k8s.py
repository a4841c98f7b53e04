"""The Kubernetes manifests: what they set, and that workers of K2 can live with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from k2 import metrics
from k2.setting_names import known_variables
from k2.settings import ROLES, Kafka, load_settings
from k2.stopping import DRAIN_S
from k2.topics import MarketTopic
from k2.web.endpoints import ENDPOINTS
from tests.deploy.test_compose import PINNED

K8S = Path(__file__).parents[2] / "deploy" / "k8s"
BASE = K8S / "base"
SECRETS = ("K2_API_KEY", "K2_ICEBERG_S3_ACCESS_KEY", "K2_ICEBERG_S3_SECRET_KEY")


def documents(folder: Path) -> list[dict[str, Any]]:
    """Every object of the folder's kustomization."""
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    return [one for name in listed for one in yaml.safe_load_all((folder / name).read_text())]


OBJECTS = documents(BASE)


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in OBJECTS if one["kind"] == kind}


WORKERS = of_kind("Deployment")
SETTINGS: dict[str, str] = of_kind("ConfigMap")["k2-settings"]["data"]


def pod(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = WORKERS[name]["spec"]["template"]["spec"]
    return spec


def container(name: str) -> dict[str, Any]:
    (only,) = pod(name)["containers"]
    found: dict[str, Any] = only
    return found


def labels(name: str) -> dict[str, str]:
    found: dict[str, str] = WORKERS[name]["spec"]["template"]["metadata"]["labels"]
    return found


def test_every_file_is_listed_and_every_name_is_one_of_a_kind() -> None:
    listed = set(yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"])
    assert listed == {path.name for path in BASE.glob("*.yaml")} - {"kustomization.yaml"}
    names = [(one["kind"], one["metadata"]["name"]) for one in OBJECTS]
    assert len(names) == len(set(names))


def test_the_workers_have_all_roles_once() -> None:
    roles = [one["value"] for name in WORKERS for one in container(name)["env"]]
    assert sorted(role for text in roles for role in text.split(",")) == sorted(ROLES)


@pytest.mark.parametrize("name", WORKERS)
def test_k2_knows_and_takes_the_settings(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = {one["name"]: one["value"] for one in container(name)["env"]}
    given = {**SETTINGS, **own, **dict.fromkeys(SECRETS, "given-value")}
    assert set(given) <= set(known_variables())
    sources = container(name)["envFrom"]
    assert {"configMapRef": {"name": "k2-settings"}} in sources
    assert {"secretRef": {"name": "k2-secrets"}} in sources
    monkeypatch.chdir(tmp_path)
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    settings = load_settings()
    assert not settings.embedded
    assert settings.core.roles == tuple(own["K2_ROLES"].split(","))


def test_no_secret_is_in_a_file() -> None:
    assert not set(SECRETS) & set(SETTINGS)
    assert not of_kind("Secret")


@pytest.mark.parametrize("name", WORKERS)
def test_probes_ask_what_k2_answers(name: str) -> None:
    known = {one.path for one in ENDPOINTS}
    (port,) = container(name)["ports"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container(name)[probe]["httpGet"]
        assert asked["path"] in known
        assert asked["port"] == port["name"]
    assert container(name)["livenessProbe"]["httpGet"]["path"] == "/health/live"
    assert container(name)["readinessProbe"]["httpGet"]["path"] == "/health/ready"


@pytest.mark.parametrize("name", WORKERS)
def test_prometheus_is_told_where_each_worker_has_its_metrics(name: str) -> None:
    told = WORKERS[name]["spec"]["template"]["metadata"]["annotations"]
    (port,) = container(name)["ports"]
    assert told["prometheus.io/scrape"] == "true"
    assert int(told["prometheus.io/port"]) == port["containerPort"]
    assert told["prometheus.io/path"] in {one.path for one in ENDPOINTS if one.scope is None}


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_has_the_time_to_drain_and_little_power(name: str) -> None:
    assert pod(name)["terminationGracePeriodSeconds"] > 25 > DRAIN_S
    assert pod(name)["securityContext"]["runAsNonRoot"] is True
    own = container(name)["securityContext"]
    assert own["readOnlyRootFilesystem"] is True
    assert own["allowPrivilegeEscalation"] is False
    writable = {one["mountPath"] for one in container(name)["volumeMounts"]}
    assert SETTINGS["K2_DATA_DIR"] in writable
    assert container(name)["resources"]["limits"]["memory"]
    assert PINNED.fullmatch(container(name)["image"])


@pytest.mark.parametrize("name", WORKERS)
def test_selectors_and_budgets_mean_their_own_worker_only(name: str) -> None:
    meant = WORKERS[name]["spec"]["selector"]["matchLabels"]
    assert meant == labels(name)
    budget = of_kind("PodDisruptionBudget")[name]["spec"]
    assert budget["selector"]["matchLabels"] == labels(name)
    assert WORKERS[name]["spec"]["replicas"] > budget["maxUnavailable"]
    (spread,) = pod(name)["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == labels(name)


def test_services_find_pods() -> None:
    for service in of_kind("Service").values():
        wanted = service["spec"]["selector"].items()
        found = [name for name in WORKERS if wanted <= labels(name).items()]
        assert found, service["metadata"]["name"]
        (port,) = service["spec"]["ports"]
        assert port["targetPort"] == "http"


def test_autoscaling_is_bounded_by_the_partitions_and_asks_for_what_there_is() -> None:
    rules = yaml.safe_load((K8S / "adapter.yaml").read_text())["rules"]["external"]
    offered = {rule["name"]["as"]: rule for rule in rules}
    partitions = Kafka(bootstrap_servers="kafka:9092").partitions
    scaled = of_kind("HorizontalPodAutoscaler")
    assert {"k2-validate", "k2-sink"} <= set(scaled)
    for name, one in scaled.items():
        spec = one["spec"]
        assert spec["scaleTargetRef"]["name"] == name in WORKERS
        assert spec["minReplicas"] == WORKERS[name]["spec"]["replicas"]
        if "External" in [metric["type"] for metric in spec["metrics"]]:
            assert spec["maxReplicas"] == partitions
            (metric,) = spec["metrics"]
            assert metric["external"]["metric"]["name"] in offered
    gauge = next(iter(metrics.LAG.describe())).name
    assert all(gauge == rule["seriesQuery"] for rule in offered.values())


@pytest.mark.parametrize("market", load_settings().topics, ids=lambda one: one.log)
def test_lag_is_of_the_topics_each_role_reads(market: MarketTopic) -> None:
    rules = yaml.safe_load((K8S / "adapter.yaml").read_text())["rules"]["external"]
    queries = {rule["name"]["as"]: rule["metricsQuery"] for rule in rules}
    for name, topics in (
        ("k2_validate_lag_messages", {market.log}),
        ("k2_sink_lag_messages", {market.validated, market.gaps, market.deferred}),
    ):
        found = re.search(r'topic(=~|!~)"([^"]+)"', queries[name])
        assert found is not None
        pattern = found[2].replace("\\\\", "\\")
        meant = {
            topic
            for topic in market.all_names
            if bool(re.fullmatch(pattern, topic)) == (found[1] == "=~")
        }
        assert meant == topics


def test_the_example_overlay_patches_what_there_is() -> None:
    overlay = yaml.safe_load((K8S / "overlays/example/kustomization.yaml").read_text())
    assert overlay["resources"] == ["../../base"]
    names = {(one["kind"], one["metadata"]["name"]) for one in OBJECTS}
    for patch in overlay["patches"]:
        assert (patch["target"]["kind"], patch["target"]["name"]) in names
        for step in yaml.safe_load(patch["patch"]):
            found: Any = of_kind(patch["target"]["kind"])[patch["target"]["name"]]
            for key in step["path"].strip("/").split("/"):
                assert key in found
                found = found[key]
