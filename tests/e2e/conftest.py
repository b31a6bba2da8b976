"""The tests share one system for the whole session: its start takes longer than most tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from openai import OpenAI

from protos.inference_v1_pb2_grpc import InferenceStub
from tests.e2e.system import System, running
from tests.support.checkpoints import write_random_checkpoint
from tests.support.requirements import require_bundled_model
from tests.support.waiting import PATIENCE_S
from workers.models.bundle import bundled_models

BUNDLED = "factbook"


@pytest.fixture(scope="session", autouse=True)
def orderly_end() -> None:
    """End the systems that a run started when the run itself is asked to end."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("random-model"))


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory, random_model: Path) -> Iterator[System]:
    """Start the bundled model if the checkout has its weights, else one with random weights."""
    model = BUNDLED if BUNDLED in bundled_models() else str(random_model)
    log = tmp_path_factory.mktemp("system") / "serve.log"
    with running(model, log) as system:
        yield system


@pytest.fixture
def knowing_system(system: System) -> System:
    """Return a system whose model knows answers."""
    require_bundled_model()
    return system


@pytest.fixture
def client(system: System) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{system.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S) as client:
        yield client


@pytest.fixture
def stub(system: System) -> Iterator[InferenceStub]:
    with grpc.insecure_channel(system.grpc_target) as channel:
        yield InferenceStub(channel)  # type: ignore[no-untyped-call]
