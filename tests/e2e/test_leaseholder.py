"""The replica that builds an entry dies while another one waits for that entry, on real Ray."""

from __future__ import annotations

import asyncio
import signal
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from cache_service.client.client import CacheClient
from cache_service.core.events import Built, Event, Granted, Released
from cache_service.core.types import Build, ReplicaId, Snapshot
from cache_service.testing import free_port
from cache_service.testing.processes import ServiceProcess
from tests.e2e.prompts import SHEET, chat, sheet
from tests.e2e.system import System, await_ready, start, stop
from tests.support.requirements import require_bundled_model
from tests.support.waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.system

LONG_SHEET = " ".join([sheet("Otto"), *[SHEET] * 14])
"""A sheet so long that building its entry takes far longer than a signal."""
BODY: dict[str, Any] = {"messages": chat(LONG_SHEET), "max_tokens": 16}
MAX_WAIT_S = 80.0
"""Patience of a request for another replica's build. It is used up only if the end of that build goes unnoticed."""


class Service(ServiceProcess):
    """A cache service that counts its callers."""

    def __init__(self, directory: Path, port: int) -> None:
        self._metrics_port = free_port()
        super().__init__(directory, "--metrics-port", str(self._metrics_port), port=port)

    def num_claims(self) -> int:
        """Return how many builds were claimed, granted or not."""
        return self._metric('calls_total{code="OK",method="Acquire"}')

    def num_watchers(self) -> int:
        return self._metric("watchers")

    def _metric(self, name: str) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics_port}/metrics", timeout=PATIENCE_S) as page:
            lines = page.read().decode().splitlines()
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith(f"palimpsest_cache_{name} "))


@pytest.fixture(scope="module")
def service_and_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, System]]:
    """Start two replicas that copy whatever they can and wait for each other's builds."""
    require_bundled_model()
    directory: Path = tmp_path_factory.mktemp("leaseholder")
    coherence = {"transfer": "always", "max_wait_s": MAX_WAIT_S, "fetch_timeout_s": 30.0}
    config = {
        "replicas": 2,
        "cache_service": {"spawn": False},
        "worker": {"dtype": "float32", "num_threads": 1, "coherence": coherence},
    }
    (directory / "palimpsest.yaml").write_text(yaml.safe_dump(config))
    system = start("factbook", directory / "serve.log", "--config", str(directory / "palimpsest.yaml"))
    try:
        with Service(directory, system.cache_port) as service:
            await_ready(system)
            yield service, system
    finally:
        if system.process.poll() is None:
            stop(system)


BuildEvent = Granted | Built | Released


async def until(watch: AsyncIterator[Snapshot | Event], kind: type[BuildEvent], seen: list[BuildEvent]) -> Build:
    """Return the build of the next event of this kind; add all events of builds up to it to `seen`."""
    async with asyncio.timeout(PATIENCE_S):
        async for event in watch:
            if isinstance(event, BuildEvent):
                seen.append(event)
                if isinstance(event, kind):
                    return event.build
    raise AssertionError("a watch never ends")


async def answer_of(system: System, **options: Any) -> tuple[str, str]:
    """Return the text, and the replica that gave it."""
    response = await asyncio.to_thread(system.post, "/v1/chat/completions", BODY | options)
    assert response.status_code == 200, response.text
    answer = response.json()
    return answer["choices"][0]["message"]["content"], answer["diffusion"]["replica"]


async def test_a_waiting_replica_takes_a_build_over_when_the_builder_is_killed(
    service_and_system: tuple[Service, System],
) -> None:
    service, system = service_and_system

    ask = partial(answer_of, system)
    expected, _ = await ask(cache_salt="an entry of its own")
    seen: list[BuildEvent] = []
    async with CacheClient(service.target, timeout_s=PATIENCE_S) as client, aclosing(client.watch()) as watch:
        snapshot = await anext(watch)
        assert isinstance(snapshot, Snapshot)
        assert len(snapshot.members) == 2
        processes = {replica: system.worker(replica) for replica in snapshot.members}

        num_claims = service.num_claims()

        first = asyncio.create_task(ask())
        build = await until(watch, Granted, seen)
        processes[build.replica].send_signal(signal.SIGSTOP)
        second = asyncio.create_task(ask())
        await asyncio.to_thread(eventually, lambda: service.num_claims() == num_claims + 2)
        processes[build.replica].kill()

        answers = await asyncio.gather(first, second)
        await until(watch, Built, seen)

    [survivor] = set(snapshot.members) - {build.replica}
    assert answers == [(expected, survivor)] * 2
    assert [(type(event), event.build.replica, event.build.key == build.key) for event in seen] == [
        (Granted, build.replica, True),
        (Released, build.replica, True),
        (Granted, survivor, True),
        (Built, survivor, True),
    ]
    eventually(lambda: metric(system, "build_waits_total", survivor, outcome="ended") == 1)
    assert metric(system, "build_waits_total", survivor, outcome="given_up") == 0


def metric(system: System, name: str, replica: ReplicaId, **labels: str) -> float:
    return system.metric(f"palimpsest_worker_{name}", replica=replica, **labels)


async def test_one_watch_serves_each_process(service_and_system: tuple[Service, System]) -> None:
    """Each replica and the ingress' router have one watch, even after replicas have called each other."""
    service, system = service_and_system

    def num_copies() -> float:
        return sum(system.metric(f"palimpsest_worker_entries_{how}_total") for how in ("fetched", "prewarmed"))

    async with asyncio.timeout(PATIENCE_S):
        while not num_copies():
            await asyncio.gather(*(answer_of(system, cache_salt="many at once") for _ in range(4)))
    eventually(lambda: service.num_watchers() == 3)
