"""The worker as Ray Serve sees it: the only file of this package that imports ray."""

from __future__ import annotations

import asyncio

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from cache_service.types import ReplicaId
from workers.api import CopyRequest
from workers.bicache.copies import EntryCopy, TransferError
from workers.config import WorkerConfig
from workers.worker import Worker


class ServeTransport:
    """Copies by calls between replicas of one deployment: they travel through Ray's object store.

    Which replica is called is said by the request; the deployment's router goes by it.
    """

    def __init__(self, deployment: str, application: str) -> None:
        self._handle: DeploymentHandle = serve.get_deployment_handle(deployment, application)

    async def fetch(self, request: CopyRequest) -> EntryCopy | None:
        """The holder's copy; None where it has none. Raises TransferError."""
        response = self._handle.send_copy.remote(request)
        try:
            copy: EntryCopy | None = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except (RayError, RayServeException) as error:
            raise TransferError(f"replica {request.holder} didn't answer: {error}") from error
        return copy


class DiffusionWorker(Worker):
    """The class to deploy: a `Worker` that learns from Serve who it is."""

    def __init__(self, config: WorkerConfig) -> None:
        context = serve.get_replica_context()
        transport = ServeTransport(context.deployment, context.app_name)
        super().__init__(config, ReplicaId(context.replica_id.unique_id), context.world_size, transport)
