"""Calls to the workers through a fake handle: Ray's errors as ours, late replicas, and cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, cast

import grpc
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve.config import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from cluster.errors import NotReadyError, ReplicaLostError
from cluster.generation import replicas as module
from cluster.generation.replicas import WorkerReplicas
from tests.support.ray_serve import DEPLOYMENT, Handle, Response, Stream, answering, hanging
from workers.api import GenerateChunk, GenerateRequest, ModelInfo
from workers.errors import EngineClosedError, InvalidRequestError, OverloadedError

REQUEST = GenerateRequest("r", (1, 2), 8)
CHUNKS = [GenerateChunk("r", (3,)), GenerateChunk("r", (4,))]
INFO = ModelInfo("tiny", "f", 256, 96, 95)


def replicas_of(*streams: Stream) -> tuple[WorkerReplicas, Handle]:
    handle = Handle()
    handle.streams.responses = list(streams)
    return WorkerReplicas(cast(Any, handle)), handle


async def read_all(replicas: WorkerReplicas, received: list[GenerateChunk]) -> None:
    async for chunk in replicas.generate(REQUEST):
        received.append(chunk)


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_TIMEOUT_S", 0.05)


async def test_an_answer_is_streamed_by_value_from_replies() -> None:
    stream = Stream(CHUNKS)
    replicas, handle = replicas_of(stream)

    assert [chunk async for chunk in replicas.generate(REQUEST)] == CHUNKS
    assert handle.streams.calls == [REQUEST]
    expected = {"method_name": "replies", "stream": True, "_by_reference": False}
    assert expected.items() <= handle.options_given.items()
    assert not stream.is_cancelled, "there is nothing left to cancel"


@pytest.mark.parametrize(
    ("raised", "expected", "words"),
    [
        (ActorDiedError(), ReplicaLostError, "lost"),
        (ActorUnavailableError("away", None), ReplicaLostError, "lost"),
        (
            grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata()),
            ReplicaLostError,
            "lost",
        ),
        (BackPressureError(7, 7), OverloadedError, "limits.max_queued"),
        (DeploymentUnavailableError(DeploymentID(name=DEPLOYMENT)), NotReadyError, "failed to deploy"),
        (RayTaskError("replies", "stack", KeyError("own")), KeyError, "own"),
    ],
)
async def test_rays_errors_become_ours(raised: Exception, expected: type[Exception], words: str) -> None:
    stream = Stream(CHUNKS[:1], raised)
    replicas, _ = replicas_of(stream)
    received: list[GenerateChunk] = []

    with pytest.raises(expected, match=words) as failure:
        await read_all(replicas, received)

    assert failure.value.__cause__ is raised
    assert received == CHUNKS[:1]
    assert stream.is_cancelled


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (EngineClosedError("draining"), ReplicaLostError),
        (InvalidRequestError("no", param="seed"), InvalidRequestError),
        (OverloadedError("full", retry_after_s=3.0), OverloadedError),
    ],
)
async def test_a_workers_error_is_raised_and_a_closed_engine_is_a_lost_replica(
    reply: Exception, expected: type[Exception]
) -> None:
    stream = Stream([*CHUNKS, reply, CHUNKS[0]])
    replicas, _ = replicas_of(stream)

    received: list[GenerateChunk] = []

    with pytest.raises(expected) as failure:
        await read_all(replicas, received)

    assert (failure.value is reply) == (expected is not ReplicaLostError)
    assert received == CHUNKS
    assert stream.is_cancelled


async def test_closing_an_answer_cancels_its_work() -> None:
    stream = Stream(CHUNKS)
    replicas, _ = replicas_of(stream)

    async with aclosing(replicas.generate(REQUEST)) as chunks:
        assert await anext(chunks) == CHUNKS[0]
        assert not stream.is_cancelled
    assert stream.is_cancelled


async def test_cancelling_the_reader_cancels_the_work() -> None:
    stream, started = Stream(CHUNKS[:1], hangs=True), asyncio.Event()
    replicas, _ = replicas_of(stream)

    async def read() -> None:
        async for _ in replicas.generate(REQUEST):
            started.set()

    reading = asyncio.create_task(read())
    await started.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert stream.is_cancelled


async def test_metrics_leave_out_replicas_that_are_late_or_lost() -> None:
    replicas, handle = replicas_of()
    late, lost, ready = hanging(), answering(ActorDiedError()), [answering("one"), answering("two")]
    handle.answer_all(late, ready[0], lost, ready[1])

    assert sorted(await replicas.metrics()) == ["one", "two"]
    assert handle.methods_called == ["metrics"]
    assert late.is_cancelled
    assert not any(response.is_cancelled for response in (lost, *ready))


async def test_the_first_replica_that_answers_describes_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_TIMEOUT_S", 60.0)
    replicas, handle = replicas_of()
    late, lost = hanging(), answering(ActorDiedError())
    handle.answer_all(late, lost, answering(INFO))

    assert await asyncio.wait_for(replicas.model_info(), 5.0) == INFO, "it doesn't wait for the late one"
    assert handle.methods_called == ["model_info"]
    assert late.is_cancelled


@pytest.mark.parametrize("responses", [[], [hanging], [lambda: answering(ActorDiedError())]])
async def test_no_answer_in_time_is_no_model_and_no_metrics(responses: list[Callable[[], Response]]) -> None:
    replicas, handle = replicas_of()
    for _ in range(2):
        handle.answer_all(*(make() for make in responses))

    assert await replicas.model_info() is None
    assert await replicas.metrics() == []


async def unavailable() -> list[Response]:
    raise RayServeException("no replica has started")


async def never() -> list[Response]:
    await asyncio.Event().wait()
    return []


@pytest.mark.parametrize("fetch", [unavailable, never])
async def test_a_deployment_that_cannot_be_called_gives_no_answers(
    fetch: Callable[[], Awaitable[list[Response]]],
) -> None:
    replicas, handle = replicas_of()
    handle.broadcasts += [fetch, fetch]

    assert await replicas.model_info() is None
    assert await replicas.metrics() == []


async def test_cancelling_a_probe_cancels_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_TIMEOUT_S", 60.0)
    replicas, handle = replicas_of()
    asked = asyncio.Event()

    async def ask() -> object:
        asked.set()
        return await asyncio.Event().wait()

    calls = [Response(ask), hanging()]
    handle.answer_all(*calls)
    probing = asyncio.create_task(replicas.metrics())
    await asked.wait()
    probing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probing
    assert all(call.is_cancelled for call in calls)
