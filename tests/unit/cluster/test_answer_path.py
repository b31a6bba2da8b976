"""An answer passes five generators on its way from the engine's queue to the bytes that a client reads."""

from __future__ import annotations

import inspect
import sys
from collections.abc import AsyncGenerator, Iterator
from types import FrameType

import pytest
from fastapi.testclient import TestClient

from cluster.generation.replicas import WorkerReplicas
from tests.unit.cluster.local import LocalWorkers
from workers.api import GenerateChunk, GenerateRequest
from workers.deployment import DiffusionWorker
from workers.engine.async_engine import AsyncEngine
from workers.worker import Worker

BODY = {
    "messages": [{"role": "user", "content": "How old is Mira?"}],
    "stream": True,
    "diffusion": {"steps": 16, "block_length": 4},
}


def callers(frame: FrameType | None) -> Iterator[FrameType]:
    while frame:
        yield frame
        frame = frame.f_back


def generators_of_cluster() -> list[str]:
    """Return the names of our generators that wait for the caller."""
    return [
        frame.f_code.co_name
        for frame in callers(sys._getframe(1))
        if frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR and frame.f_globals["__name__"].startswith("cluster.")
    ]


def test_the_ingress_adds_two_generators_to_the_replicas(
    client: TestClient, workers: LocalWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[list[str]] = []
    generate = workers.generate

    async def watched(request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        async for chunk in generate(request):
            waiting.append(generators_of_cluster())
            yield chunk

    monkeypatch.setattr(workers, "generate", watched)

    assert client.post("/v1/chat/completions", json=BODY).text.endswith("[DONE]\n\n")
    assert max(waiting, key=len) == ["run", "write_events"]


def test_the_workers_side_has_three() -> None:
    below = (AsyncEngine.generate, DiffusionWorker.replies, WorkerReplicas.generate)
    assert all(map(inspect.isasyncgenfunction, below))
    assert not inspect.isasyncgenfunction(Worker.generate)
