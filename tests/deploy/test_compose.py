"""The compose stack, checked without an engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from k2.setting_names import known_variables
from k2.settings import ROLES, load_settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
WORKERS = {name: one for name, one in SERVICES.items() if name.startswith("k2-")}
INTERPOLATED = re.compile(r"\$\{(\w+)(:\?[^}]*)?\}")
SECRET = re.compile(r"PASSWORD|SECRET|ACCESS_KEY|API_KEY|TOKEN")
PINNED = re.compile(r"[\w./-]+:v?\d[\w.-]*(@sha256:[0-9a-f]{64})?")

#: The part of the Compose Specification that the file uses; a key outside it is a mistake.
SCHEMA = {
    "type": "object",
    "required": ["services", "volumes"],
    "additionalProperties": False,
    "patternProperties": {"^x-": {}},
    "properties": {
        "services": {"type": "object", "additionalProperties": {"$ref": "#/$defs/service"}},
        "volumes": {"type": "object", "additionalProperties": {"type": ["object", "null"]}},
    },
    "$defs": {
        "texts": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "duration": {"type": "string", "pattern": r"^\d+(ms|s|m)$"},
        "service": {
            "type": "object",
            "required": ["image", "healthcheck", "deploy", "restart", "environment"],
            "additionalProperties": False,
            "properties": {
                "image": {"type": "string"},
                "build": {
                    "type": "object",
                    "required": ["context"],
                    "additionalProperties": False,
                    "properties": {
                        "context": {"type": "string"},
                        "dockerfile": {"type": "string"},
                    },
                },
                "profiles": {"$ref": "#/$defs/texts"},
                "restart": {"enum": ["unless-stopped", "always"]},
                "command": {"$ref": "#/$defs/texts"},
                "stop_grace_period": {"$ref": "#/$defs/duration"},
                "ports": {"$ref": "#/$defs/texts"},
                "volumes": {"$ref": "#/$defs/texts"},
                # Numbers and booleans read differently in YAML and in a process.
                "environment": {"type": "object", "additionalProperties": {"type": "string"}},
                "depends_on": {
                    "type": "object",
                    "additionalProperties": {
                        "type": "object",
                        "required": ["condition"],
                        "properties": {"condition": {"const": "service_healthy"}},
                    },
                },
                "healthcheck": {
                    "type": "object",
                    "required": ["test", "interval", "timeout", "retries"],
                    "additionalProperties": False,
                    "properties": {
                        "test": {"type": "array", "prefixItems": [{"const": "CMD"}]},
                        "interval": {"$ref": "#/$defs/duration"},
                        "timeout": {"$ref": "#/$defs/duration"},
                        "start_period": {"$ref": "#/$defs/duration"},
                        "retries": {"type": "integer", "minimum": 1},
                    },
                },
                "deploy": {
                    "type": "object",
                    "required": ["resources"],
                    "properties": {
                        "resources": {
                            "type": "object",
                            "required": ["limits"],
                            "properties": {
                                "limits": {
                                    "type": "object",
                                    "required": ["cpus", "memory"],
                                    "additionalProperties": False,
                                    "properties": {
                                        "cpus": {"type": "string", "pattern": r"^\d+(\.\d+)?$"},
                                        "memory": {"type": "string", "pattern": r"^\d+[mg]$"},
                                    },
                                }
                            },
                        }
                    },
                },
            },
        },
    },
}


def environment(service: dict[str, Any]) -> dict[str, str]:
    """As Compose passes it, every required variable given."""
    given = service.get("environment", {})
    return {name: INTERPOLATED.sub("given-value", value) for name, value in given.items()}


def test_the_file_is_valid() -> None:
    # Prometheus takes all it needs from files.
    whole = {**COMPOSE, "services": {n: {"environment": {}, **s} for n, s in SERVICES.items()}}
    jsonschema.Draft202012Validator(SCHEMA).validate(whole)


def test_composes_own_check_agrees_where_it_is_installed() -> None:
    if shutil.which("docker") is None:
        return
    here = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    if here.returncode:
        return  # no plugin: the structural rules of this file are the check
    given = dict.fromkeys(required_variables(), "given-value")
    done = subprocess.run(
        ["docker", "compose", "config", "--quiet"],
        cwd=ROOT,
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def required_variables() -> set[str]:
    return {found[1] for found in INTERPOLATED.finditer(json.dumps(COMPOSE))}


def test_the_production_shape_is_complete() -> None:
    assert set(SERVICES) >= {
        *("kafka", "registry", "s3", "postgres", "catalog", "kafka-ui", "prometheus", "grafana")
    }
    roles = [role for one in WORKERS.values() for role in one["environment"]["K2_ROLES"].split(",")]
    assert sorted(roles) == sorted(ROLES)
    answering = [one for one in WORKERS.values() if "ports" in one]
    assert [one["ports"] for one in answering] == [["127.0.0.1:8000:8000"]]
    assert "query" in answering[0]["environment"]["K2_ROLES"]


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name: str) -> None:
    assert PINNED.fullmatch(SERVICES[name]["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_on_loopback(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_built_and_waited_for_is_there(name: str) -> None:
    service = SERVICES[name]
    for mount in service.get("volumes", []):
        source = mount.split(":")[0]
        if source.startswith("."):
            assert (ROOT / source).exists(), source
            assert mount.endswith(":ro")
        else:
            assert source in COMPOSE["volumes"]
    if build := service.get("build"):
        context = ROOT / build["context"]
        assert (context / build.get("dockerfile", "Dockerfile")).is_file()
    assert set(service.get("depends_on", {})) <= set(SERVICES)


def test_no_volume_is_left_over() -> None:
    used = {mount.split(":")[0] for one in SERVICES.values() for mount in one.get("volumes", [])}
    assert set(COMPOSE["volumes"]) == {source for source in used if not source.startswith(".")}


@pytest.mark.parametrize("name", SERVICES)
def test_no_secret_has_a_default(name: str) -> None:
    for variable, value in SERVICES[name].get("environment", {}).items():
        if SECRET.search(variable):
            found = INTERPOLATED.fullmatch(value)
            assert found is not None, f"{variable} is written into the file"
            assert found[2], f"{variable} may be left empty"


def test_the_example_names_every_variable_and_gives_no_value() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert set(given) == required_variables()
    assert set(given.values()) == {""}


@pytest.mark.parametrize("name", WORKERS)
def test_workers_set_settings_that_k2_knows_and_takes(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = environment(WORKERS[name])
    assert set(given) <= set(known_variables())
    monkeypatch.chdir(tmp_path)
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    settings = load_settings()
    assert settings.core.environment == "production"
    assert not settings.embedded
    hosts = re.findall(r"(?:^|//)([\w-]+):\d+", "\n".join(given.values()), re.MULTILINE)
    assert set(hosts) <= set(SERVICES), "a worker asks a service that is not in the stack"


def test_prometheus_scrapes_every_worker_and_finds_its_rules() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    # Names instead of addresses: with `--scale` one name has several.
    (found,) = job["dns_sd_configs"]
    assert found["names"] == list(WORKERS)
    assert (found["type"], found["port"]) == ("A", 8000)
    assert job["job_name"] == "k2"
    inside = dict(mount.split(":")[1::-1] for mount in SERVICES["prometheus"]["volumes"])
    for pattern in config["rule_files"]:
        folder, _, glob = pattern.rpartition("/")
        assert list((ROOT / inside[folder]).glob(glob))


def test_trino_is_asked_for_and_reads_the_lake_the_workers_write() -> None:
    trino = SERVICES["trino"]
    assert trino["profiles"] == ["trino"]
    text = (ROOT / "deploy/trino/catalog/k2.properties").read_text()
    asked = set(re.findall(r"\$\{ENV:(\w+)\}", text))
    assert asked == set(trino["environment"])
    settings = WORKERS["k2-sink"]["environment"]
    assert {name: settings[name] for name in asked} == trino["environment"]


def test_grafana_finds_its_dashboards_and_its_source() -> None:
    provisioning = ROOT / "deploy/grafana/provisioning"
    providers = yaml.safe_load((provisioning / "dashboards/k2.yml").read_text())["providers"]
    mounts = [mount.split(":") for mount in SERVICES["grafana"]["volumes"]]
    inside = {target: source for source, target, *_ in mounts}
    assert list((ROOT / inside[providers[0]["options"]["path"]]).glob("*.json"))
    sources = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())
    assert [one["url"] for one in sources["datasources"]] == ["http://prometheus:9090"]


@pytest.mark.parametrize("file", ["deploy/Dockerfile", "deploy/s3/Dockerfile"])
def test_images_of_our_own_are_small_pinned_and_not_root(file: str) -> None:
    lines = (ROOT / file).read_text().splitlines()
    stages = [line.split() for line in lines if line.startswith("FROM ")]
    assert len(stages) == 2
    assert all(PINNED.fullmatch(stage[1]) for stage in stages)
    users = [number for number, line in enumerate(lines) if line.startswith("USER ")]
    last_from = max(number for number, line in enumerate(lines) if line.startswith("FROM "))
    assert users
    assert users[-1] > last_from
    assert lines[users[-1]] not in ("USER root", "USER 0")


def test_the_image_holds_all_a_worker_needs() -> None:
    """What is not let through `.dockerignore` is not there at run time."""
    kept = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    assert kept >= {"agents", "k2", "schemas", "tables", "pyproject.toml", "requirements.lock"}
    assert all((ROOT / name).exists() for name in kept)
