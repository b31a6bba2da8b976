"""The supervisor's watch of a cluster, over a real HTTP server and a real process that stands for Ray's."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cluster.config import ClusterConfig, HttpConfig
from cluster.supervisor.watch import ClusterWatch, WatchLimits, health_url
from tests.support.waiting import PATIENCE_S, until
from tests.unit.cluster.test_supervisor import config

QUICK = WatchLimits(check_period_s=0.01, probe_period_s=0.02, probe_timeout_s=0.1, silence_s=0.3, unhealthy_s=0.3)
PATIENT = WatchLimits(check_period_s=0.01, probe_period_s=0.02, silence_s=PATIENCE_S, unhealthy_s=PATIENCE_S)


class Handler(BaseHTTPRequestHandler):
    """Answers with the status of its server, or not at all while that is None."""

    server: HealthServer

    def do_GET(self) -> None:
        self.server.num_probes += 1
        if self.server.status is None:
            self.server.released.wait(PATIENCE_S)
        else:
            self.send_response(self.server.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, *args: object) -> None:
        """Write nothing."""


class HealthServer(ThreadingHTTPServer):
    """Answers as a cluster's /health does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status: int | None = 200
        self.num_probes = 0
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/health"

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()


@pytest.fixture
def server() -> Iterator[HealthServer]:
    server = HealthServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.stop()
    thread.join()


@pytest.fixture
def vital_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    monkeypatch.setattr("cluster.supervisor.watch.VITAL_PROCESSES", frozenset({"sleep"}))
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


async def loss_after(watch: ClusterWatch, server: HealthServer, status: int | None) -> str:
    """Return why the watch counts a cluster as lost that was ready, and then answers with `status`."""
    lost = asyncio.create_task(watch.wait_until_lost())
    await until(lambda: watch.was_ready)
    server.status = status
    return await asyncio.wait_for(lost, PATIENCE_S)


async def test_the_end_of_a_vital_process_is_a_loss_at_once(
    server: HealthServer, vital_process: subprocess.Popen[bytes]
) -> None:
    watch = ClusterWatch(server.url, PATIENT)
    lost = asyncio.create_task(watch.wait_until_lost())
    await until(lambda: watch.was_ready)
    assert not lost.done()

    vital_process.kill()

    assert await asyncio.wait_for(lost, PATIENCE_S) == "Ray's process sleep has ended"


async def test_a_vital_process_that_ends_is_seen_while_a_probe_waits(
    server: HealthServer, vital_process: subprocess.Popen[bytes]
) -> None:
    watch = ClusterWatch(server.url, PATIENT)
    lost = asyncio.create_task(watch.wait_until_lost())
    await until(lambda: watch.was_ready)
    server.status = None
    seen = server.num_probes
    await until(lambda: server.num_probes > seen)

    vital_process.kill()

    assert await asyncio.wait_for(lost, PATIENCE_S) == "Ray's process sleep has ended"
    server.released.set()


async def test_failing_health_is_a_loss_after_its_limit(server: HealthServer) -> None:
    assert "has failed for" in await loss_after(ClusterWatch(server.url, QUICK), server, 503)


async def test_silence_is_a_loss_after_its_limit(server: HealthServer) -> None:
    assert "hasn't answered for 0.3 s" in await loss_after(ClusterWatch(server.url, QUICK), server, None)


async def test_refused_connections_are_silence(server: HealthServer) -> None:
    watch = ClusterWatch(server.url, QUICK)
    lost = asyncio.create_task(watch.wait_until_lost())
    await until(lambda: watch.was_ready)

    await asyncio.to_thread(server.stop)

    assert "hasn't answered for 0.3 s" in await asyncio.wait_for(lost, PATIENCE_S)


async def test_a_failure_that_passes_is_no_loss(server: HealthServer) -> None:
    watch = ClusterWatch(server.url, PATIENT)
    lost = asyncio.create_task(watch.wait_until_lost())
    await until(lambda: watch.was_ready)

    for status in (503, 200):
        server.status, seen = status, server.num_probes
        await until(lambda seen=seen: server.num_probes > seen + 1)

    assert not lost.done()
    lost.cancel()


async def test_a_cluster_is_not_lost_before_it_was_ready(server: HealthServer) -> None:
    server.status = 503
    watch = ClusterWatch(server.url, WatchLimits(0.01, 0.02, 1.0, silence_s=0.0, unhealthy_s=0.0))
    lost = asyncio.create_task(watch.wait_until_lost())

    await until(lambda: server.num_probes > 3)

    assert (lost.done(), watch.was_ready) == (False, False)
    lost.cancel()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:8000/health"),
        ("::", "http://[::1]:8000/health"),
        ("10.0.0.7", "http://10.0.0.7:8000/health"),
    ],
)
def test_health_is_probed_at_an_address_of_this_machine(host: str, url: str) -> None:
    at_host: ClusterConfig = config(http=HttpConfig(host=host, port=8000))
    assert health_url(at_host) == url
