from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.registry import Collector

from cache_service.client.client import CacheClient
from cache_service.client.contact import WatchContact
from cache_service.core.types import ReplicaId
from cache_service.testing import free_port
from cache_service.testing.processes import ServiceProcess
from cluster.background import BackgroundTasks
from cluster.generation.answer import InferenceService
from cluster.generation.contexts.denoising import ContextDenoiser
from cluster.generation.encoding import TextEncoder
from cluster.ingress.access import AccessLog
from cluster.ingress.http.app import create_app
from cluster.metrics import IngressMetrics
from tests.support.checkpoints import write_random_checkpoint
from tests.unit.cluster.local import Connect, LocalWorkers
from workers.config import WorkerConfig
from workers.worker import Worker


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("random-model"))


@pytest.fixture(scope="session")
def worker(random_model: Path) -> Iterator[Worker]:
    worker = Worker(WorkerConfig(model=random_model, num_threads=1), ReplicaId("local"), 1)
    yield worker
    worker.__del__()


@pytest.fixture(scope="session")
def cache_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with ServiceProcess(tmp_path_factory.mktemp("cache-service")) as process:
        yield process


@pytest.fixture
def workers(worker: Worker) -> LocalWorkers:
    return LocalWorkers(worker)


@pytest.fixture
def metrics() -> IngressMetrics:
    return IngressMetrics()


@pytest.fixture
def access(metrics: IngressMetrics) -> AccessLog:
    return AccessLog(metrics)


@pytest.fixture
def cache_target() -> str:
    """Return an address where nothing listens, unless a test starts a service there."""
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def cache(cache_target: str) -> CacheClient:
    return CacheClient(cache_target, timeout_s=5.0)


@pytest.fixture
def contexts_patience_s() -> float:
    return 0.2


@pytest.fixture
def background() -> BackgroundTasks:
    return BackgroundTasks()


@pytest.fixture
def contact() -> WatchContact:
    return WatchContact()


@pytest.fixture
def service(
    workers: LocalWorkers,
    random_model: Path,
    metrics: IngressMetrics,
    cache: CacheClient,
    background: BackgroundTasks,
    contexts_patience_s: float,
    contact: WatchContact,
) -> InferenceService:
    return InferenceService(
        workers,
        TextEncoder(random_model),
        metrics,
        cache,
        name="random",
        max_tokens=16,
        timeout_s=30.0,
        background=background,
        contexts_patience_s=contexts_patience_s,
        contact=contact,
    )


@pytest.fixture
def denoiser(service: InferenceService, metrics: IngressMetrics) -> ContextDenoiser:
    return ContextDenoiser(service, metrics, 4)


@pytest.fixture
def connect(
    service: InferenceService,
    denoiser: ContextDenoiser,
    metrics: IngressMetrics,
    cache: CacheClient,
    access: AccessLog,
) -> Connect:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with cache:
            yield

    async def gather() -> Collector:
        return metrics.registry

    def connect(
        api_keys: frozenset[str] = frozenset(),
        max_body_bytes: int = 10_000,
        cors_origins: Sequence[str] = (),
        keepalive_s: float = 15.0,
    ) -> TestClient:
        app = create_app(
            service,
            denoiser,
            api_keys=api_keys,
            max_body_bytes=max_body_bytes,
            keepalive_s=keepalive_s,
            metrics=gather,
            lifespan=lifespan,
            access=access,
            cors_origins=cors_origins,
        )
        return TestClient(app, raise_server_exceptions=False)

    return connect


@pytest.fixture
def client(connect: Connect) -> TestClient:
    return connect()
