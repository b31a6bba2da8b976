"""An operator reads these lines while a system starts and serves; its output goes to a file, not to a terminal."""

from __future__ import annotations

import re
from pathlib import Path

import httpx2 as httpx

from tests.e2e.system import System, command_of
from tests.support.waiting import PATIENCE_S, eventually

PARTS = (
    "starting the cache service and the cluster",
    "serving on 127.0.0.1",
    "starting Ray",
    "Ray is ready after",
    "loaded",
    "DiffusionWorker: 2 of 2 replicas ready",
    "everything is ready after",
    "Ask it:",
)


def test_a_start_shows_its_parts_as_they_become_ready(system: System) -> None:
    log = system.log.read_text()
    found = [log.find(part) for part in PARTS]

    assert -1 not in found, dict(zip(PARTS, found, strict=True))
    assert found[2:] == sorted(found[2:])
    assert f"gRPC is served at {system.grpc_target}" in log


def test_a_refused_request_leaves_a_line_and_a_count(system: System) -> None:
    headers = {"content-type": "application/json", "x-request-id": "unreadable-body"}
    httpx.post(f"{system.url}/v1/chat/completions", content=b"{", headers=headers, timeout=PATIENCE_S)

    line = r"POST /v1/chat/completions 400 [\d.]+ ms request_id=unreadable-body tenant=- reason=invalid_request_error"
    eventually(lambda: re.search(line, system.log.read_text()))
    labels = {"endpoint": "/v1/chat/completions", "status": "400", "transport": "http"}
    assert system.metric("palimpsest_responses_total", **labels) >= 1


def test_a_client_that_leaves_its_stream_counts_as_499(system: System) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 512, "ignore_eos": True, "stream": True}
    slow = body | {"diffusion": {"steps": 512, "block_length": 8, "policy": "none"}}
    with httpx.stream("POST", f"{system.url}/v1/chat/completions", json=slow, timeout=PATIENCE_S) as response:
        next(response.iter_lines())

    eventually(lambda: system.metric("palimpsest_responses_total", status="499", reason="client_left") >= 1)


def test_a_file_holds_neither_colours_nor_advice_of_libraries(system: System) -> None:
    long = {"messages": [{"role": "user", "content": "How old is Mira? " * 2_000}]}
    assert system.post("/v1/chat/completions", long).status_code == 400
    eventually(lambda: "reason=context_length_exceeded" in system.log.read_text())

    log = system.log.read_text()
    assert "\x1b[" not in log
    assert "indexing errors" not in log
    assert "[transformers]" not in log


def test_ray_writes_no_statistics_about_itself(system: System) -> None:
    commands = " ".join(command_of(child) for child in system.processes("session_"))
    found = re.search(r"[^\s=]+/session_[^/\s]+/logs", commands)
    assert found, commands
    of_server = Path(found[0]) / "gcs_server.out"

    assert "Event stats" not in of_server.read_text()
    assert of_server.stat().st_size < 1 << 20


def test_health_and_the_queue_of_an_idle_system(system: System) -> None:
    assert system.get("/health").json() == {"status": "ok"}
    assert system.metric("palimpsest_router_cache_service_reachable") == 1
    assert system.metric("palimpsest_worker_cache_service_reachable") == 2
    eventually(lambda: system.metric("palimpsest_router_queued_tokens") == 0)
