"""Call the workers, and translate Ray's errors. Only this module uses Ray Serve's deployment handle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, cast

import grpc
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from cluster.errors import NotReadyError, ReplicaLostError
from workers.api import GenerateChunk, GenerateRequest, ModelInfo
from workers.errors import EngineClosedError, OverloadedError, WorkerError
from workers.ray_internals import BY_VALUE, call_all

PROBE_TIMEOUT_S = 5.0


class WorkerReplicas:
    """Calls the replicas of the worker deployment through Serve's router."""

    def __init__(self, handle: DeploymentHandle) -> None:
        """Ask for answers by value, directly from the replica: Ray objects are expensive for many small messages."""
        self._handle = handle
        self._generate: Any = handle.options(
            method_name="replies",
            stream=True,
            request_serialization="pickle",
            response_serialization="pickle",
            **BY_VALUE,
        )

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Yield one answer's chunks. Closing the generator before its end cancels the work.

        Raises OverloadedError, NotReadyError, ReplicaLostError, and the worker's own errors.
        """
        response = self._generate.remote(request)
        ended = False
        try:
            async for reply in response:
                if isinstance(reply, EngineClosedError):
                    raise ReplicaLostError("the replica was shut down")
                if isinstance(reply, WorkerError):
                    raise reply
                yield reply
            ended = True
        except (ActorDiedError, ActorUnavailableError, grpc.aio.AioRpcError) as error:
            raise ReplicaLostError("the replica was lost") from error
        except BackPressureError as error:
            raise OverloadedError(f"{error.message} Try again later, or raise limits.max_queued") from error
        except DeploymentUnavailableError as error:
            raise NotReadyError(error.message) from error
        except RayTaskError as error:
            raise error.cause from error
        finally:
            if not ended:
                response.cancel()

    async def model_info(self) -> ModelInfo | None:
        async with aclosing(self._answers("model_info")) as infos:
            return cast(ModelInfo | None, await anext(infos, None))

    async def metrics(self) -> Sequence[str]:
        """Return each replica's metrics in Prometheus' text format."""
        return [cast(str, text) async for text in self._answers("metrics")]

    async def _answers(self, method: str) -> AsyncGenerator[object, None]:
        """Yield the replicas' answers as they come; a replica that is lost or doesn't answer in time is left out."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                calls = await call_all(self._handle, method)
        except (TimeoutError, RayServeException):
            return
        waiting = {asyncio.create_task(call.get_async()): call for call in calls}
        deadline = asyncio.get_running_loop().time() + PROBE_TIMEOUT_S
        try:
            while waiting:
                remaining_s = deadline - asyncio.get_running_loop().time()
                done, _ = await asyncio.wait(waiting, timeout=remaining_s, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    return
                for task in done:
                    del waiting[task]
                answers = [task.result() for task in done if not (task.cancelled() or task.exception())]
                for answer in answers:
                    yield answer
        finally:
            for task, call in waiting.items():
                task.cancel()
                call.cancel()
