"""The generated serveConfigV2 follows from the one configuration and fits the manifests around it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from cluster.config_file import load_config, parse_config, to_mapping
from cluster.errors import ConfigError
from deploy import manifests as generator

Manifest = dict[str, Any]


@pytest.fixture(scope="session")
def serve_config(rayservice: Manifest) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(rayservice["spec"]["serveConfigV2"])
    return content


@pytest.fixture(scope="session")
def arguments(serve_config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration that the application will have, defaults included."""
    (application,) = serve_config["applications"]
    return to_mapping(parse_config(application["args"]))


@pytest.fixture(scope="session")
def worker_group(rayservice: Manifest) -> Manifest:
    (group,) = rayservice["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return dict(group)


@pytest.fixture(scope="session")
def worker(worker_group: Manifest) -> Manifest:
    (container,) = worker_group["template"]["spec"]["containers"]
    return dict(container)


@pytest.fixture
def command() -> typer.Typer:
    app = typer.Typer()
    app.command()(generator.main)
    return app


def test_the_committed_manifests_are_what_the_generator_writes(command: typer.Typer) -> None:
    result = CliRunner().invoke(command, ["--check"])
    assert (result.exit_code, result.output) == (0, "")


def test_a_changed_difference_is_noticed_and_written(command: typer.Typer, overlay: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(overlay, tmp_path / "mine")
    (mine / "palimpsest.yaml").write_text("replicas: 7\nmodel: factbook-plain\n")
    target = mine / generator.GENERATED

    before = target.read_text()
    result = CliRunner().invoke(command, [str(mine), "--check"])
    assert (result.exit_code, result.output) == (1, f"{target} is out of date\n")
    assert target.read_text() == before

    assert CliRunner().invoke(command, [str(mine)]).output == f"wrote {target}\n"
    (application,) = yaml.safe_load(yaml.safe_load(target.read_text())["spec"]["serveConfigV2"])["applications"]
    assert (application["args"]["replicas"], application["args"]["model"]) == (7, "factbook-plain")
    assert CliRunner().invoke(command, [str(mine), "--check"]).exit_code == 0


def test_kustomize_carries_the_generated_config_whole(serve_config: dict[str, Any], overlay: Path) -> None:
    assert serve_config == generator.serve_config(overlay)


def test_only_defaults_are_left_out(arguments: dict[str, Any], overlay: Path) -> None:
    differences = yaml.safe_load((overlay / "palimpsest.yaml").read_text())
    whole = to_mapping(load_config(generator.CONFIG, differences))
    for server in ("http", "grpc"):
        assert arguments[server] == {**whole.pop(server), "host": "0.0.0.0"}
    assert {key: arguments[key] for key in whole} == whole


def test_a_value_that_is_false_or_none_is_no_default_by_itself() -> None:
    defaults = {"a": 1, "b": {"c": True, "d": "x"}, "e": {"f": 0}}
    assert generator.chosen({"a": None, "b": {"c": False, "d": "x"}, "e": {"f": 0}}, defaults) == {
        "a": None,
        "b": {"c": False},
    }


def test_every_worker_pod_gets_one_replica(arguments: dict[str, Any], worker_group: Manifest) -> None:
    assert arguments["replicas"] == worker_group["replicas"]


def test_every_worker_pod_gets_one_ingress(serve_config: dict[str, Any], worker_group: Manifest) -> None:
    (application,) = serve_config["applications"]
    (ingress,) = application["deployments"]
    assert ingress == {"name": "Ingress", "num_replicas": worker_group["replicas"], "max_replicas_per_node": 1}


def test_an_unknown_number_of_pods_is_refused(overlay: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(overlay, tmp_path / "mine")
    (mine / "palimpsest.yaml").write_text("replicas: auto\n")
    with pytest.raises(ConfigError, match="set replicas"):
        generator.serve_config(mine)


def test_one_worker_and_one_ingress_fit_into_a_pod_and_no_second(arguments: dict[str, Any], worker: Manifest) -> None:
    limits = worker["resources"]["limits"]
    reserved = arguments["resources"]
    free = float(limits["cpu"]) - reserved["worker_cpus"] - reserved["ingress_cpus"]
    assert free >= 0
    assert free < reserved["worker_cpus"] or limits.get("nvidia.com/gpu") == "1"


def test_the_workers_device_is_what_the_pod_has(arguments: dict[str, Any], worker: Manifest) -> None:
    has_gpu = "nvidia.com/gpu" in worker["resources"]["limits"]
    assert arguments["worker"]["device"] == ("cuda" if has_gpu else "cpu")


def test_the_ports_are_open_on_every_interface(
    serve_config: dict[str, Any], arguments: dict[str, Any], worker: Manifest
) -> None:
    ports = {port["name"]: port["containerPort"] for port in worker["ports"]}
    assert serve_config["http_options"] == {"host": "0.0.0.0", "port": ports["serve"]}
    assert arguments["grpc"] == {"host": "0.0.0.0", "port": ports["grpc"]}


def test_the_cache_service_is_called_at_its_service(arguments: dict[str, Any], manifests: list[Manifest]) -> None:
    cache = arguments["cache_service"]
    assert cache["spawn"] is False
    (service,) = (m for m in manifests if m["kind"] == "Service" and m["metadata"]["name"] == cache["host"])
    assert cache["port"] in [port["port"] for port in service["spec"]["ports"]]


def test_api_keys_are_in_the_environment_that_is_read(arguments: dict[str, Any], worker: Manifest) -> None:
    given = [variable["name"] for variable in worker.get("env", [])]
    asked = arguments["api_keys"]["env"]
    assert given == ([asked] if asked else [])
