"""`palimpsest serve` restarts a lost cluster, and lets running requests end when it is stopped."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest

from tests.e2e.prompts import chat, sheet
from tests.e2e.system import System, await_ready, running, start
from tests.support.waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.system

REFUSAL_S = 15.0
"""Longest time until a refusal; no bound on the server, whose machine may be busy, but on a request that is held."""
BODY = {"messages": chat(sheet("Ruth")), "max_tokens": 8}


@pytest.fixture(scope="module")
def restarted(tmp_path_factory: pytest.TempPathFactory, random_model: Path) -> Iterator[System]:
    with running(str(random_model), tmp_path_factory.mktemp("survival") / "serve.log", "--replicas", "1") as system:
        yield system


@pytest.mark.parametrize("name", ["raylet", "gcs_server", "cluster.supervisor.driver"])
def test_a_lost_part_of_ray_is_refused_then_restarted(restarted: System, name: str) -> None:
    create = {"messages": [{"role": "system", "content": f"kept through the loss of {name}"}]}
    context = restarted.post("/v1/contexts", create).json()["id"]

    for process in restarted.processes(name):
        process.kill()

    eventually(lambda: outcome(restarted) != "answered", reason=lambda: "the loss must be seen")
    assert outcome(restarted) != "held"
    eventually(lambda: outcome(restarted) == "answered", 240, restarted.log.read_text)
    assert restarted.get(f"/v1/contexts/{context}").status_code == 200
    assert restarted.process.poll() is None
    assert "the cluster was lost" in restarted.log.read_text()


def outcome(system: System) -> str:
    """Send a request and return `answered`, `refused` or `held`."""
    try:
        reply = httpx.post(f"{system.url}/v1/chat/completions", json=BODY, timeout=REFUSAL_S)
    except httpx.TimeoutException:
        return "held"
    except httpx.TransportError:
        return "refused"
    return "answered" if reply.status_code == 200 else "refused"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_running_requests_end_before_the_server_does(tmp_path: Path, random_model: Path, number: int) -> None:
    system = start(str(random_model), tmp_path / "serve.log", "--replicas", "1")
    await_ready(system)
    long = {**BODY, "max_tokens": 96, "diffusion": {"steps": 96, "policy": "none"}}
    replies: list[httpx.Response] = []
    request = threading.Thread(target=lambda: replies.append(system.post("/v1/chat/completions", long)))
    request.start()
    eventually(lambda: system.metric("palimpsest_worker_running") == 1)

    psutil.Process(system.process.pid).send_signal(number)
    eventually(lambda: refusal(system) is not None, reason=lambda: "new requests must be refused")
    status = refusal(system)
    request.join(PATIENCE_S)

    assert [reply.status_code for reply in replies] == [200]
    assert status in {503, "connection refused"}
    assert system.process.wait(PATIENCE_S) == 0


def refusal(system: System) -> int | str | None:
    try:
        reply = httpx.post(f"{system.url}/v1/chat/completions", json=BODY, timeout=PATIENCE_S)
    except httpx.TransportError:
        return "connection refused"
    return None if reply.status_code == 200 else reply.status_code


def test_a_second_signal_ends_it_at_once(tmp_path: Path, random_model: Path) -> None:
    system = start(str(random_model), tmp_path / "serve.log", "--replicas", "1")
    await_ready(system)
    endless = {**BODY, "max_tokens": 400, "diffusion": {"steps": 400, "policy": "none"}}
    request = threading.Thread(target=lambda: ask(system, endless))
    request.start()
    eventually(lambda: system.metric("palimpsest_worker_running") == 1)

    psutil.Process(system.process.pid).send_signal(signal.SIGINT)
    eventually(lambda: refusal(system) is not None)
    psutil.Process(system.process.pid).send_signal(signal.SIGINT)

    assert system.process.wait(PATIENCE_S) == 0
    request.join(PATIENCE_S)


def ask(system: System, body: object) -> None:
    with suppress(httpx.TransportError):
        httpx.post(f"{system.url}/v1/chat/completions", json=body, timeout=PATIENCE_S)
