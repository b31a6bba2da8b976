"""Deployment, Services and policies: valid, hardened, and pointing at each other."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="the dev extra brings kubernetes-validate")

Manifest = dict[str, Any]
KUBERNETES = "1.33"


def core(manifests: list[Manifest]) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] != "RayService"]


def pod_templates(manifests: list[Manifest]) -> Iterator[Manifest]:
    for manifest in manifests:
        match manifest["kind"]:
            case "Deployment":
                yield manifest["spec"]["template"]
            case "RayService":
                cluster = manifest["spec"]["rayClusterConfig"]
                yield cluster["headGroupSpec"]["template"]
                yield from (group["template"] for group in cluster["workerGroupSpecs"])


def containers(manifests: list[Manifest]) -> list[Manifest]:
    return [container for template in pod_templates(manifests) for container in template["spec"]["containers"]]


def selected(manifests: list[Manifest], labels: dict[str, str]) -> list[Manifest]:
    return [t for t in pod_templates(manifests) if labels.items() <= t["metadata"]["labels"].items()]


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {manifest["metadata"]["name"]: manifest for manifest in manifests if manifest["kind"] == kind}


def test_kubernetes_accepts_every_object(manifests: list[Manifest]) -> None:
    kinds = [manifest["kind"] for manifest in core(manifests)]
    assert sorted(kinds) == ["Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service", "Service"]
    for manifest in core(manifests):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_pods_that_kuberay_makes_are_pods(manifests: list[Manifest]) -> None:
    for template in pod_templates(manifests):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": template["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize(("key", "value"), [("replicas", "one"), ("replica", 1), ("selector", {"matchLabel": {}})])
def test_the_schema_catches_a_planted_error(key: str, value: object, manifests: list[Manifest]) -> None:
    wrong = copy.deepcopy(of_kind(manifests, "Deployment")["palimpsest-cache"])
    wrong["spec"][key] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_every_service_reaches_a_port_that_is_there(manifests: list[Manifest]) -> None:
    for service in of_kind(manifests, "Service").values():
        templates = selected(manifests, service["spec"]["selector"])
        assert len(templates) == 1
        ports = {p["name"]: p["containerPort"] for p in templates[0]["spec"]["containers"][0]["ports"]}
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]


def test_http_and_grpc_are_exposed(manifests: list[Manifest]) -> None:
    (rayservice,) = of_kind(manifests, "RayService").values()
    http = rayservice["spec"]["serveService"]
    assert (http["metadata"]["name"], http["spec"]["ports"]) == ("palimpsest-http", [{"name": "serve", "port": 8000}])
    (grpc,) = of_kind(manifests, "Service")["palimpsest-grpc"]["spec"]["ports"]
    assert grpc["port"] == 9000


def test_the_disruption_budget_spares_a_worker(manifests: list[Manifest]) -> None:
    (budget,) = of_kind(manifests, "PodDisruptionBudget").values()
    assert len(selected(manifests, budget["spec"]["selector"]["matchLabels"])) == 1
    (rayservice,) = of_kind(manifests, "RayService").values()
    (group,) = rayservice["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert 1 <= budget["spec"]["minAvailable"] < group["replicas"]


def test_only_this_deployment_may_call_the_cache_service(manifests: list[Manifest]) -> None:
    (policy,) = of_kind(manifests, "NetworkPolicy").values()
    assert len(selected(manifests, policy["spec"]["podSelector"]["matchLabels"])) == 1
    calls, scrapes = policy["spec"]["ingress"]
    assert (calls["ports"], scrapes) == ([{"port": "grpc"}], {"ports": [{"port": "metrics"}]})
    (peer,) = calls["from"]
    assert len(selected(manifests, peer["podSelector"]["matchLabels"])) == 3


def test_the_cache_service_is_probed_by_its_own_health_service(manifests: list[Manifest]) -> None:
    (container,) = of_kind(manifests, "Deployment")["palimpsest-cache"]["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"] == {"port": ports["grpc"]}


def test_pods_hold_no_privilege(manifests: list[Manifest]) -> None:
    for template in pod_templates(manifests):
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_containers_state_what_they_need(manifests: list[Manifest]) -> None:
    for container in containers(manifests):
        resources = container["resources"]
        assert {"cpu", "memory"} <= resources["requests"].keys()
        assert "memory" in resources["limits"]


def test_images_have_the_version_of_the_project(manifests: list[Manifest], repository: Path) -> None:
    version = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["version"]
    images = {container["image"] for container in containers(manifests)}
    assert images == {f"palimpsest-cache:{version}", f"palimpsest-serve:{version}"}


def test_secrets_come_by_reference(manifests: list[Manifest]) -> None:
    secret = [
        variable
        for container in containers(manifests)
        for variable in container.get("env", [])
        if any(word in variable["name"] for word in ("KEY", "PASSWORD", "SECRET", "TOKEN"))
    ]
    for variable in secret:
        assert set(variable["valueFrom"]) == {"secretKeyRef"}
