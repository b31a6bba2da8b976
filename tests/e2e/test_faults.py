"""Processes die or hang, and clients notice nothing."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.prompts import LONG, chat, sheet
from tests.e2e.system import System
from tests.support.waiting import eventually

WORKER = "ServeReplica:palimpsest:DiffusionWorker"


def replica_of(response: object) -> str:
    assert isinstance(response, dict)
    return str(response["diffusion"]["replica"])


def test_a_killed_worker_fails_no_request(system: System) -> None:
    """Neither requests that it was working on nor later ones fail, and Serve starts it again."""
    body = {"messages": chat(sheet("Rosa")), "max_tokens": 8}
    held_by = replica_of(system.post("/v1/chat/completions", body).json())
    with ThreadPoolExecutor() as pool:
        in_flight = pool.submit(system.post, "/v1/chat/completions", body | LONG)
        eventually(lambda: system.metric("palimpsest_worker_running", replica=held_by) == 1)

        system.worker(held_by).kill()

        later = [system.post("/v1/chat/completions", body) for _ in range(20)]
        assert in_flight.result().status_code == 200, in_flight.result().text
    assert replica_of(in_flight.result().json()) != held_by
    assert [response.status_code for response in later] == [200] * 20
    assert held_by not in {replica_of(response.json()) for response in later}
    eventually(lambda: len(system.processes(WORKER)) == 2)
    eventually(lambda: all(process.cpu_percent(interval=1.0) < 50 for process in system.processes(WORKER)))  # at rest


@pytest.mark.system
def test_a_worker_that_hangs_hides_no_other(system: System) -> None:
    replica = replica_of(system.post("/v1/chat/completions", {"messages": chat(sheet("Ruth")), "max_tokens": 8}).json())
    others = {name for name in replicas_in(system) if name != replica}
    hanging = system.worker(replica)
    hanging.suspend()
    try:
        assert system.get("/health").status_code == 200
        assert replicas_in(system) == others != set()
    finally:
        hanging.resume()

    eventually(lambda: replicas_in(system) == {replica, *others})


def replicas_in(system: System) -> set[str]:
    """Return the replicas whose metrics are at /metrics."""
    families = text_string_to_metric_families(system.get("/metrics").text)
    running = (sample for family in families for sample in family.samples if family.name == "palimpsest_worker_running")
    return {sample.labels["replica"] for sample in running}


@pytest.mark.system
def test_requests_are_served_while_the_cache_service_is_away_and_it_comes_back(system: System) -> None:
    body = {"messages": chat(sheet("Stella")), "max_tokens": 8}
    first = system.post("/v1/chat/completions", body).json()
    eventually(lambda: system.metric("palimpsest_router_placements") > 0)
    [service] = system.processes("cluster.supervisor.launch cache_service")

    service.send_signal(signal.SIGKILL)
    psutil.wait_procs([service], timeout=5)
    meanwhile = system.post("/v1/chat/completions", body)

    assert meanwhile.status_code == 200
    assert replica_of(meanwhile.json()) == replica_of(first)
    eventually(lambda: serving(system.cache_port))
    eventually(lambda: system.metric("palimpsest_router_placements") > 0)
    after = system.post("/v1/chat/completions", body).json()
    assert after["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


@pytest.mark.system
def test_a_request_that_follows_a_context_outlives_the_cache_service(system: System) -> None:
    """The request goes on with its epoch; the memory store's contexts are gone with the process."""
    made = system.post("/v1/contexts", {"messages": chat(sheet("Tilda"))[:1]}).json()
    body = {"messages": chat("")[1:], "context": {"id": made["id"], "mode": "follow"}}
    blocks = {"steps": 96, "block_length": 8, "min_tokens": 96, "policy": "none"}
    [service] = system.processes("cluster.supervisor.launch cache_service")
    with ThreadPoolExecutor() as pool:
        moved = system.metric("palimpsest_worker_forwards_total")
        in_flight = pool.submit(system.post, "/v1/chat/completions", body | {"max_tokens": 96, "diffusion": blocks})
        eventually(lambda: system.metric("palimpsest_worker_forwards_total") > moved)
        service.send_signal(signal.SIGKILL)
        answer = in_flight.result().json()

    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["context"]["epochs"] == [0]
    eventually(lambda: serving(system.cache_port))
    assert system.get(f"/v1/contexts/{made['id']}").status_code == 404


def serving(port: int) -> bool:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
