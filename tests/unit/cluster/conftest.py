from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cache_service.types import ReplicaId
from cluster.ingress.service import InferenceService
from cluster.metrics import IngressMetrics
from cluster.tokenization import Tokenization
from tests.e2e.checkpoints import write_random_checkpoint
from tests.unit.cluster.local import LocalWorkers
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


@pytest.fixture
def workers(worker: Worker) -> LocalWorkers:
    return LocalWorkers(worker)


@pytest.fixture
def metrics() -> IngressMetrics:
    return IngressMetrics()


@pytest.fixture
def service(workers: LocalWorkers, random_model: Path, metrics: IngressMetrics) -> InferenceService:
    return InferenceService(workers, Tokenization(random_model), metrics, name="random", max_tokens=16, timeout_s=30.0)
