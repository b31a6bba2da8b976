"""Run `python -m cache_service` as an operator does: a process with health, reflection, metrics and signals."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from cache_service.client.client import CacheClient
from cache_service.testing import free_port
from tests.unit.cache_service.builders import ANNA, key, placed

SERVICE = "palimpsest.cache.v1.Directory"


@contextmanager
def service(*options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-m", "cache_service", "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        banner = next(filter(None, (re.search(r"serving on .*:(\d+) ", line) for line in process.stderr)))
        yield process, int(banner[1])
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.communicate()


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        return str(response.read().decode())


async def test_an_instance_serves_and_logs_it() -> None:
    metrics_port = free_port()
    with service("--metrics-port", str(metrics_port)) as (process, port):
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            status = health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=10).status
            assert status == health_pb2.HealthCheckResponse.SERVING
            assert SERVICE in ProtoReflectionDescriptorDatabase(channel).get_services()
        async with CacheClient(f"127.0.0.1:{port}", timeout_s=10.0) as client:
            lease = await client.register(ANNA, ttl_s=30.0)
            await client.announce(lease, [placed("a", ANNA)])
            assert await client.lookup([key("a")]) == {key("a"): (placed("a", ANNA),)}
            watch = client.watch()
            await anext(watch)
            scraped = await asyncio.to_thread(scrape, metrics_port)
            assert "palimpsest_cache_placements 1.0" in scraped
            process.send_signal(signal.SIGTERM)  # the open watch must not keep it
            _, rest = process.communicate(timeout=10)
            await watch.aclose()
    assert process.returncode == 0
    assert rest.rstrip().endswith("stopped")
    assert "Traceback" not in rest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_cleanly(number: signal.Signals) -> None:
    with service() as (process, _):
        process.send_signal(number)
        assert process.wait(timeout=10) == 0


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (["--history", "0"], 1, "history must be at least 1"),
        (["--log-level", "loud"], 2, "--log-level"),
        (["--port", "0", "--metrics-port", "PORT"], 1, "--metrics-port"),
    ],
)
def test_a_wrong_option_ends_the_process_with_a_message(options: list[str], code: int, named: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        port = str(occupied.getsockname()[1])
        command = [sys.executable, "-m", "cache_service", *(option.replace("PORT", port) for option in options)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == code
    assert named in result.stderr
    assert "Traceback" not in result.stderr
