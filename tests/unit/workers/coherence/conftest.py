from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cache_service.client.client import CacheClient
from cache_service.testing.processes import ServiceProcess
from tests.unit.workers.coherence.replicas import LONG_S, Cluster


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with ServiceProcess(tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture
def cluster(tmp_path: Path, service: ServiceProcess) -> Iterator[Cluster]:
    with Cluster(tmp_path, service.target) as cluster:
        yield cluster


@pytest.fixture
async def client(service: ServiceProcess) -> AsyncIterator[CacheClient]:
    async with CacheClient(service.target, timeout_s=LONG_S) as client:
        yield client
