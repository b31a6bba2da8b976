"""KubeRay's schema accepts the RayService, which keeps some more promises of ours."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from tests.unit.deploy.rayservice_fields import RAY_SERVICE

Manifest = dict[str, Any]


def worker_group(rayservice: Manifest) -> Manifest:
    (group,) = rayservice["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return dict(group)


def container(group: Manifest) -> Manifest:
    (only,) = group["template"]["spec"]["containers"]
    return dict(only)


def test_kuberay_accepts_the_rayservice(rayservice: Manifest, rayservice_validator: Draft202012Validator) -> None:
    rayservice_validator.validate(rayservice)


def test_kuberay_accepts_fault_tolerance(
    fault_tolerant_rayservice: Manifest, rayservice_validator: Draft202012Validator
) -> None:
    rayservice_validator.validate(fault_tolerant_rayservice)
    options = fault_tolerant_rayservice["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    assert options["redisAddress"] == "redis:6379"
    assert set(options["redisPassword"]) == {"valueFrom"}


def disagreements(ours: dict[str, Any], kuberays: dict[str, Any], path: str = "") -> Iterator[str]:
    """Yield the paths at which our table of fields says something else than KubeRay's definition."""
    for said in ("type", "enum"):
        if ours.get(said) != kuberays.get(said):
            yield f"{path}: {said}"
    if "properties" in ours and set(ours["required"]) != set(kuberays.get("required", ())):
        yield f"{path}: required"
    for name, child in ours.get("properties", {}).items():
        if name in kuberays.get("properties", {}):
            yield from disagreements(child, kuberays["properties"][name], f"{path}.{name}")
        else:
            yield f"{path}.{name}: unknown"
    if "items" in ours:
        yield from disagreements(ours["items"], kuberays["items"], f"{path}[]")


def test_the_fields_that_we_use_are_as_kuberay_defines_them(kuberay_definition: dict[str, Any]) -> None:
    assert list(disagreements(RAY_SERVICE, kuberay_definition)) == []


def unknown_key(manifest: Manifest) -> None:
    manifest["spec"]["serveConfigV3"] = ""


def unknown_key_in_a_pod(manifest: Manifest) -> None:
    manifest["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = (
        "Never"
    )


def wrong_type(manifest: Manifest) -> None:
    manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["replicas"] = "two"


def number_for_a_string(manifest: Manifest) -> None:
    manifest["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def missing_head(manifest: Manifest) -> None:
    del manifest["spec"]["rayClusterConfig"]["headGroupSpec"]


@pytest.mark.parametrize("plant", [unknown_key, unknown_key_in_a_pod, wrong_type, number_for_a_string, missing_head])
def test_the_schema_catches_a_planted_error(
    plant: Callable[[Manifest], None], rayservice: Manifest, rayservice_validator: Draft202012Validator
) -> None:
    wrong = copy.deepcopy(rayservice)
    plant(wrong)
    with pytest.raises(ValidationError):
        rayservice_validator.validate(wrong)


def test_the_head_does_no_work_and_takes_no_traffic(rayservice: Manifest) -> None:
    head = rayservice["spec"]["rayClusterConfig"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert head["rayStartParams"]["num-gpus"] == "0"
    assert rayservice["spec"]["excludeHeadPodFromServeSvc"] is True


def test_the_dashboard_asks_for_a_token(rayservice: Manifest) -> None:
    assert rayservice["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token"}


def test_the_cluster_runs_the_ray_that_the_image_has(rayservice: Manifest, repository: Path) -> None:
    version = rayservice["spec"]["rayClusterConfig"]["rayVersion"]
    assert f"ray=={version}" in (repository / "constraints.txt").read_text().splitlines()


def test_workers_have_gpus_only_in_the_gpu_overlay(rayservice: Manifest, overlay: Path) -> None:
    limits = container(worker_group(rayservice))["resources"]["limits"]
    assert limits.get("nvidia.com/gpu") == {"cpu": None, "gpu": "1"}[overlay.name]


def test_the_group_never_scales_away_from_the_replicas_that_serve_places(rayservice: Manifest) -> None:
    group = worker_group(rayservice)
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
