"""The worker as Ray Serve sees it: the only file of this package that imports ray."""

from __future__ import annotations

from ray import serve

from cache_service.types import ReplicaId
from workers.config import WorkerConfig
from workers.worker import Worker


class DiffusionWorker(Worker):
    """The class to deploy: a `Worker` that learns from Serve who it is."""

    def __init__(self, config: WorkerConfig) -> None:
        context = serve.get_replica_context()
        super().__init__(config, ReplicaId(context.replica_id.unique_id), context.world_size)
