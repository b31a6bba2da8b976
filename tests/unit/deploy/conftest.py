"""The manifests as `kubectl apply -k` would send them, and the schemas that they must match."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.support.requirements import REPOSITORY, SHARED, how_to_share
from tests.unit.deploy.rayservice_fields import RAY_SERVICE

Manifest = dict[str, Any]

DEFINITION = SHARED / "crds" / "ray.io_rayservices.yaml"


def tool(name: str) -> str:
    """Return the path of a development tool, this environment's own first; skip the test if there is none."""
    found = shutil.which(name, path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]))
    if found is None:
        pytest.skip(f"no {name} here: pip install -e '.[dev]'")
    return found


def kustomize(directory: Path) -> list[Manifest]:
    command = [tool("kubectl"), "kustomize", str(directory)]
    rendered = subprocess.run(command, check=False, capture_output=True, text=True)
    assert rendered.returncode == 0, rendered.stderr
    return list(yaml.safe_load_all(rendered.stdout))


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def hadolint() -> str:
    return tool("hadolint")


@pytest.fixture(scope="session", params=["cpu", "gpu"])
def overlay(request: pytest.FixtureRequest) -> Path:
    return REPOSITORY / "deploy" / "kustomize" / "overlays" / str(request.param)


@pytest.fixture(scope="session")
def manifests(overlay: Path) -> list[Manifest]:
    return kustomize(overlay)


@pytest.fixture(scope="session")
def rayservice(manifests: list[Manifest]) -> Manifest:
    return next(manifest for manifest in manifests if manifest["kind"] == "RayService")


@pytest.fixture(scope="session")
def fault_tolerant_rayservice(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Render the gpu overlay with the gcs-fault-tolerance component, as docs/deploy.md composes them."""
    directory = tmp_path_factory.mktemp("kustomize")
    source = Path(os.path.relpath(REPOSITORY / "deploy" / "kustomize", directory))
    kustomization = {
        "resources": [str(source / "overlays" / "gpu")],
        "components": [str(source / "components" / "gcs-fault-tolerance")],
    }
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return next(manifest for manifest in kustomize(directory) if manifest["kind"] == "RayService")


@pytest.fixture(scope="session", params=["fields", "definition"] if DEFINITION.is_file() else ["fields"])
def rayservice_validator(request: pytest.FixtureRequest) -> Draft202012Validator:
    """Return a validator of ray.io/v1 RayService: by the fields that we use, and by KubeRay's definition if it is here.

    One test is skipped where it isn't, and says so for all.
    """
    return Draft202012Validator(RAY_SERVICE if request.param == "fields" else closed(read_definition()))


@pytest.fixture(scope="session")
def kuberay_definition() -> dict[str, Any]:
    """Return the schema of RayService that KubeRay installs in a cluster; it lies beside the project."""
    if not DEFINITION.is_file():
        pytest.skip(f"manifests were checked against the fields that we use alone: {how_to_share(DEFINITION)}")
    return read_definition()


@cache
def read_definition() -> dict[str, Any]:
    definition = yaml.load(DEFINITION.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (v for v in definition["spec"]["versions"] if v["name"] == "v1")
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {  # ObjectMeta: the API server's own schema, not the CRD's
        "type": "object",
        "additionalProperties": True,
    }
    return schema


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return `schema` as the API server reads it strictly: an object has the keys that are named and no others.

    Objects that keep unknown fields or map free keys stay as they are.
    """
    node = dict(schema)
    if "properties" in node:
        node["properties"] = {key: closed(child) for key, child in node["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            node[key] = closed(node[key])
    is_open = node.get("x-kubernetes-preserve-unknown-fields", False) or "additionalProperties" in node
    if node.get("type") == "object" and not is_open:
        node["additionalProperties"] = False
    return node
