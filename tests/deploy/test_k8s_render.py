"""The manifests as Kubernetes would get them: built by kustomize, checked by its own OpenAPI."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from k2.dev import tools
from k2.dev.cache import cached, run
from tests.deploy.test_k8s import K8S, OBJECTS
from tests.services.require import require

KUSTOMIZE = "v5.6.0"
KUBERNETES = "v1.32.0"

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]


def kustomize() -> Path:
    def build(into: Path) -> None:
        run(
            ["go", "install", f"sigs.k8s.io/kustomize/kustomize/v5@{KUSTOMIZE}"],
            "kustomize could not be built; it needs Go's module proxy",
            env={"GOBIN": str(into), "GOFLAGS": "-buildvcs=false"},
        )

    return cached(f"kustomize-{KUSTOMIZE}", "bin", build) / "kustomize"


def openapi() -> Path:
    """The description of the API, from the module that is Kubernetes itself."""

    def fetch(into: Path) -> None:
        text = run(
            ["go", "mod", "download", "-json", f"k8s.io/kubernetes@{KUBERNETES}"],
            "Kubernetes' module could not be fetched; it needs Go's module proxy",
        )
        source = Path(json.loads(text)["Dir"]) / "api" / "openapi-spec" / "v3"
        for file in source.glob("*.json"):
            shutil.copy(file, into)

    return cached(f"kubernetes-{KUBERNETES}", "openapi", fetch)


@pytest.fixture(scope="module", params=["base", "overlays/example"])
def rendered(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    require(tools.missing("go"))
    text = run([str(kustomize()), "build", str(K8S / request.param)], "kustomize refused")
    return list(yaml.safe_load_all(text))


def schema_of(group_version: str, kind: str) -> dict[str, Any]:
    """The kind's schema, in which an unknown field is an error."""
    group, _, version = group_version.rpartition("/")
    name = f"apis__{group}__{version}" if group else f"api__{version}"
    document = json.loads((openapi() / f"{name}_openapi.json").read_text())
    components = document["components"]
    for one in components["schemas"].values():
        if "properties" in one and "additionalProperties" not in one:
            one["additionalProperties"] = False
    (found,) = [
        key
        for key, one in components["schemas"].items()
        for meant in one.get("x-kubernetes-group-version-kind", ())
        if (meant["group"], meant["version"], meant["kind"]) == (group, version, kind)
    ]
    return {"$ref": f"#/components/schemas/{found}", "components": components}


def test_every_object_is_one_kubernetes_takes(rendered: list[dict[str, Any]]) -> None:
    assert {(one["kind"], one["metadata"]["name"]) for one in rendered} == {
        (one["kind"], one["metadata"]["name"]) for one in OBJECTS
    }
    for one in rendered:
        schema = schema_of(one["apiVersion"], one["kind"])
        jsonschema.Draft202012Validator(schema).validate(one)


def test_the_check_can_fail(rendered: list[dict[str, Any]]) -> None:
    deployment = next(one for one in rendered if one["kind"] == "Deployment")
    schema = schema_of("apps/v1", "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["redinessProbe"] = {}
    with pytest.raises(jsonschema.ValidationError, match="redinessProbe"):
        jsonschema.Draft202012Validator(schema).validate(deployment)


def test_the_overlay_moves_and_patches() -> None:
    require(tools.missing("go"))
    text = run([str(kustomize()), "build", str(K8S / "overlays/example")], "kustomize refused")
    objects = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(text)}
    assert {one["metadata"]["namespace"] for one in objects.values()} == {"market-data"}
    query = objects["Deployment", "k2-query"]["spec"]
    assert query["replicas"] == 3
    (container,) = query["template"]["spec"]["containers"]
    assert container["image"] == "registry.example.com/k2:0.1.0"
    settings = objects["ConfigMap", "k2-settings"]["data"]
    assert settings["K2_KAFKA_BOOTSTRAP_SERVERS"].startswith("kafka-0.")
