"""The one wall to Ray Serve's deployment handle: calls to the workers, and errors in our own words."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from cluster.errors import NotReadyError, ReplicaLostError
from workers.api import GenerateChunk, GenerateRequest, ModelInfo
from workers.errors import EngineClosedError, OverloadedError, WorkerError

PROBE_TIMEOUT_S = 5.0


class WorkerReplicas:
    """All replicas of the worker deployment, reached through its router."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self._generate: Any = handle.options(method_name="replies", stream=True)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """One answer's chunks. Closing the generator before its end cancels the work.

        Raises OverloadedError, NotReadyError, ReplicaLostError, and the worker's own errors.
        """
        response = self._generate.remote(request)
        ended = False
        try:
            async for reply in response:
                if isinstance(reply, EngineClosedError):
                    raise ReplicaLostError("the worker was shut down in the middle of this answer; ask again")
                if isinstance(reply, WorkerError):
                    raise reply
                yield reply
            ended = True
        except (ActorDiedError, ActorUnavailableError) as error:
            raise ReplicaLostError("the worker was lost in the middle of this answer; ask again") from error
        except BackPressureError as error:
            raise OverloadedError(f"{error.message} Try again later, or raise limits.max_queued") from error
        except DeploymentUnavailableError as error:
            raise NotReadyError(error.message) from error
        except RayTaskError as error:
            raise error.cause from error
        finally:
            if not ended:
                response.cancel()

    async def model_infos(self) -> Sequence[ModelInfo]:
        return cast(Sequence[ModelInfo], await self._each("model_info"))

    async def metrics(self) -> Sequence[str]:
        """Each replica's metrics in Prometheus' text format."""
        return cast(Sequence[str], await self._each("metrics"))

    async def _each(self, method: str) -> Sequence[object]:
        """Results of the replicas that answer in time; a replica that is lost or slow is left out."""
        try:
            responses = self._handle.broadcast(method)
            results = await responses.results_async(timeout_s=PROBE_TIMEOUT_S, return_exceptions=True)
        except (TimeoutError, RayServeException):
            return ()
        return tuple(result for result in results if not isinstance(result, BaseException))
