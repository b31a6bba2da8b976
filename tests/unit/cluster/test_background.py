"""Tasks that should never end: one that does makes the ingress unhealthy, over HTTP and over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
import pytest
from fastapi.testclient import TestClient
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster import background as background_module
from cluster import router as router_module
from cluster.background import BackgroundTasks, Work
from cluster.errors import BackgroundTaskError
from cluster.generation.answer import InferenceService
from cluster.generation.contexts.denoising import ContextDenoiser
from cluster.ingress.grpc.server import serving
from cluster.router import PrefixAffinityRouter
from tests.unit.cluster.local import LocalWorkers
from workers.api import ModelInfo

NAME = "the watch"
NEXT_CHECK = health_pb2.HealthCheckRequest()
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def fail() -> None:
    raise OSError("no route")


async def return_at_once() -> None:
    pass


async def run_for_ever() -> None:
    await asyncio.Event().wait()


async def end_of(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])
    await asyncio.sleep(0)  # callbacks run behind the task


@pytest.fixture
async def statuses(
    service: InferenceService, denoiser: ContextDenoiser, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[AsyncIterator[int]]:
    monkeypatch.setattr("cluster.ingress.grpc.server.SERVING_PERIOD_S", 0.05)
    monkeypatch.setattr("cluster.ingress.grpc.server.STARTING_PERIOD_S", 0.05)

    async def watch(channel: grpc.aio.Channel) -> AsyncIterator[int]:
        async for response in health_pb2_grpc.HealthStub(channel).Watch(NEXT_CHECK):
            yield response.status

    async with (
        serving(service, denoiser, "127.0.0.1:0", frozenset(), max_message_bytes=100_000) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield watch(channel)


async def wait_for(status: int, statuses: AsyncIterator[int]) -> None:
    async with asyncio.timeout(20):
        async for seen in statuses:
            if seen == status:
                return


async def test_tasks_that_run_or_were_meant_to_end_are_healthy(background: BackgroundTasks) -> None:
    task = background.start(NAME, run_for_ever())
    async with background.running("another", run_for_ever()):
        await asyncio.sleep(0)
        background.check()
    await asyncio.sleep(0)
    background.check()
    task.cancel()


@pytest.mark.parametrize(("work", "reason"), [(fail, "no route"), (return_at_once, "returned")])
async def test_a_task_that_ends_is_named_with_its_reason(
    background: BackgroundTasks, work: Callable[[], Work], reason: str
) -> None:
    await end_of(background.start(NAME, work()))

    with pytest.raises(BackgroundTaskError, match=f"{NAME}.*{reason}"):
        background.check()


async def test_a_task_that_is_cancelled_by_anything_else_has_ended_too(background: BackgroundTasks) -> None:
    task = background.start(NAME, run_for_ever())
    await asyncio.sleep(0)
    task.cancel()
    await end_of(task)

    with pytest.raises(BackgroundTaskError, match="cancelled"):
        background.check()


async def test_health_over_http_gives_the_reason(client: TestClient, background: BackgroundTasks) -> None:
    assert client.get("/health").status_code == 200
    await end_of(background.start(NAME, fail()))

    response = client.get("/health")

    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (503, "background_task_ended")
    assert NAME in error["message"]
    assert "no route" in error["message"]


async def test_health_over_grpc_fails_once_a_task_has_ended(
    statuses: AsyncIterator[int], background: BackgroundTasks
) -> None:
    await wait_for(SERVING, statuses)
    await end_of(background.start(NAME, fail()))

    await wait_for(NOT_SERVING, statuses)


async def test_a_report_of_health_that_ends_leaves_no_good_report_behind(
    statuses: AsyncIterator[int], background: BackgroundTasks, client: TestClient
) -> None:
    await wait_for(SERVING, statuses)
    [report] = [task for task in asyncio.all_tasks() if task.get_name() == "the report of health over gRPC"]
    report.cancel()

    await wait_for(NOT_SERVING, statuses)
    await end_of(report)
    assert client.get("/health").status_code == 503


async def test_a_check_that_fails_for_once_does_not_end_the_report(
    statuses: AsyncIterator[int], workers: LocalWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    await wait_for(SERVING, statuses)

    async def broken() -> ModelInfo | None:
        raise KeyError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(workers, "model_info", broken)
        await wait_for(NOT_SERVING, statuses)
    await wait_for(SERVING, statuses)


async def test_a_router_whose_watch_ends_makes_its_process_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = BackgroundTasks()
    monkeypatch.setattr(background_module, "_OF_PROCESS", tasks)
    monkeypatch.setattr(router_module, "RouterCollector", lambda *_: None)
    router = PrefixAffinityRouter.__new__(PrefixAffinityRouter)
    router.initialize_state("Worker", "127.0.0.1:1", 1.0, 1.0, 10.0, 1 / 3)
    await asyncio.sleep(0)
    tasks.check()

    [watch] = [task for task in asyncio.all_tasks() if "watch of the cache service" in task.get_name()]
    watch.cancel()
    await end_of(watch)

    with pytest.raises(BackgroundTaskError, match="watch of the cache service"):
        tasks.check()
