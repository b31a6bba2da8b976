"""The cpu overlay's very serveConfigV2 on a Ray cluster of the manifest's shape, submitted as KubeRay submits it.

The nodes share this machine, so addresses differ from the manifest's, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
import requests
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.waiting import eventually

pytestmark = pytest.mark.system

Json = dict[str, Any]

KUSTOMIZE = Path(__file__).parents[2] / "deploy" / "kustomize"
READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 40.0
TOKEN = secrets.token_hex(16)
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}

SHEET = "Mira is 34, lives in Oslo and has a fox. Tobin is 29, lives in Lima and has a cat."

await_ready = partial(eventually, timeout_s=READY_TIMEOUT_S, poll_s=0.5, ignoring=requests.ConnectionError)


@dataclass(frozen=True)
class Ports:
    gcs: int
    dashboard: int
    client: int
    http: int
    grpc: int
    cache: int


@dataclass(frozen=True)
class Deployed:
    ports: Ports
    details: Json
    """The deployed application, with Serve's own report of what runs on which node."""

    @property
    def application(self) -> Json:
        return dict(self.details["applications"]["palimpsest"])

    def nodes_of(self, deployment: str) -> list[str]:
        return sorted(replica["node_id"] for replica in self.application["deployments"][deployment]["replicas"])


@pytest.fixture(scope="module")
def rayservice() -> Json:
    return dict(yaml.safe_load((KUSTOMIZE / "base" / "rayservice.yaml").read_text())["spec"])


@pytest.fixture(scope="module")
def ports() -> Ports:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(6)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return Ports(*(each.getsockname()[1] for each in sockets))


@pytest.fixture(scope="module")
def cache_service(ports: Ports) -> Iterator[None]:
    with running([sys.executable, "-m", "cache_service", "--port", str(ports.cache)], dict(os.environ)):
        yield


@pytest.fixture(scope="module")
def ray_cluster(rayservice: Json, ports: Ports) -> Iterator[None]:
    """Start the head and the workers of the manifest, each with the CPUs that it names."""
    cluster = rayservice["rayClusterConfig"]
    head = cluster["headGroupSpec"]["rayStartParams"]
    (group,) = cluster["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    directory = tempfile.mkdtemp(prefix="ray-")  # a short path: Ray's sockets lie in it
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    ray = [str(Path(sysconfig.get_path("scripts"), "ray")), "start", "--block", "--dashboard-agent-listen-port=0"]
    ray += [f"--temp-dir={directory}", "--object-store-memory=100000000"]
    start_head = [
        *ray,
        "--head",
        "--node-ip-address=127.0.0.1",
        f"--port={ports.gcs}",
        f"--dashboard-port={ports.dashboard}",
        f"--ray-client-server-port={ports.client}",
        f"--num-cpus={head['num-cpus']}",
        f"--num-gpus={head['num-gpus']}",
    ]
    start_worker = [
        *ray,
        f"--address=127.0.0.1:{ports.gcs}",
        f"--num-cpus={container['resources']['limits']['cpu']}",
        "--num-gpus=0",
    ]

    def has_nodes(count: int) -> bool:
        reply = requests.get(f"http://127.0.0.1:{ports.dashboard}/api/v0/nodes", headers=AUTHORIZED, timeout=5)
        return reply.ok and reply.json()["data"]["result"]["total"] == count

    with contextlib.ExitStack() as nodes:
        nodes.callback(shutil.rmtree, directory, ignore_errors=True)
        nodes.enter_context(running(start_head, environment))
        await_ready(partial(has_nodes, 1))
        for pod in range(1, 1 + group["replicas"]):  # one after the other: on one machine they would race for names
            nodes.enter_context(running([*start_worker, f"--node-ip-address=127.0.0.{1 + pod}"], environment))
            await_ready(partial(has_nodes, 1 + pod))
        yield


@pytest.fixture(scope="module")
def deployed(ray_cluster: None, cache_service: None, ports: Ports) -> Iterator[Deployed]:
    manifest = yaml.safe_load((KUSTOMIZE / "overlays" / "cpu" / "serve-config.yaml").read_text())
    content = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    (application,) = content["applications"]
    content["http_options"] = {"host": "127.0.0.1", "port": ports.http}
    application["args"]["grpc"]["port"] = ports.grpc
    application["args"]["cache_service"] |= {"host": "127.0.0.1", "port": ports.cache}
    url = f"http://127.0.0.1:{ports.dashboard}/api/serve/applications/"
    assert requests.put(url, json=content, timeout=30).status_code == requests.codes.unauthorized
    requests.put(url, json=content, headers=AUTHORIZED, timeout=30).raise_for_status()

    def details() -> Json:
        return dict(requests.get(url, headers=AUTHORIZED, timeout=10).json())

    def is_running() -> bool:
        application = details()["applications"]["palimpsest"]
        assert application["status"] != "DEPLOY_FAILED", application["message"]
        return bool(application["status"] == "RUNNING")

    await_ready(is_running, reason=lambda: yaml.safe_dump(details()["applications"]))
    yield Deployed(ports, details())
    requests.delete(url, headers=AUTHORIZED, timeout=30).raise_for_status()


@pytest.fixture(scope="module")
def client(deployed: Deployed) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{deployed.ports.http}/v1", api_key="none") as client:
        yield client


@contextlib.contextmanager
def running(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    """Run the command as a child, and end it afterwards with everything that it started."""
    process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_a_question_over_http_is_answered(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    answer = client.chat.completions.create(
        model=model.id,
        messages=[
            {"role": "system", "content": SHEET},
            {"role": "user", "content": "Who is older, Mira or Tobin?"},
        ],
    )
    assert answer.choices[0].message.content == "Mira (34) is older than Tobin (29)."


def test_a_sheet_asked_about_again_is_read_from_the_cache(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    sheet = SHEET + " Anna is 51, lives in Rome and has a dog."
    answers = [
        client.chat.completions.create(
            model=model.id,
            messages=[{"role": "system", "content": sheet}, {"role": "user", "content": question}],
            extra_body={"diffusion": {"policy": "bicache", "reuse_depth": 4}},
        )
        for question in ("How old is Mira?", "Where does Tobin live?", "Where does Anna live?")
    ]
    replies: list[Json] = [answer.to_dict() for answer in answers]
    cached = [reply["usage"]["prompt_tokens_details"]["cached_tokens"] for reply in replies]
    assert cached[0] == 0
    assert min(cached[1:]) > 0
    assert len({reply["diffusion"]["replica"] for reply in replies}) == 1


def test_every_worker_pod_has_one_worker_and_one_ingress_and_the_head_none(deployed: Deployed) -> None:
    workers, ingresses = deployed.nodes_of("DiffusionWorker"), deployed.nodes_of("Ingress")
    assert len(set(workers)) == len(workers) == 2
    assert ingresses == workers


def test_grpc_reports_its_health(deployed: Deployed) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{deployed.ports.grpc}") as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.skipif(shutil.which("wget") is None, reason="the probe runs wget: apt install wget")
def test_the_pods_readiness_probe_passes_only_while_both_ports_serve(deployed: Deployed, rayservice: Json) -> None:
    (group,) = rayservice["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    *shell, script = container["readinessProbe"]["exec"]["command"]
    http, closed = str(deployed.ports.http), "1"

    def probe(http: str, grpc: str) -> int:
        command = [*shell, script.replace("8000", http).replace("9000", grpc)]
        return subprocess.run(command, check=False, stderr=subprocess.DEVNULL, timeout=10).returncode

    assert probe(http, str(deployed.ports.grpc)) == 0
    assert probe(http, closed) != 0
    assert probe(closed, str(deployed.ports.grpc)) != 0
