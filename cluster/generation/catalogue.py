"""Describe the served model to the ingress."""

from __future__ import annotations

import asyncio

from cluster.errors import ModelNotFoundError, NotReadyError
from cluster.generation.workers import Workers
from workers.api import ModelInfo


class ModelCatalogue:
    """Asks the workers which model they serve, and remembers it."""

    def __init__(self, workers: Workers, name: str) -> None:
        """Serve the model under `name`."""
        self.name = name
        self._workers = workers
        self._info: ModelInfo | None = None
        self._probe: asyncio.Task[bool] | None = None

    async def is_ready(self) -> bool:
        """Ask the workers, and return whether one answers now."""
        info = await self._workers.model_info()
        self._info = info or self._info
        return info is not None

    async def model(self) -> ModelInfo:
        """Return the served model. Raises NotReadyError until a worker has started."""
        if self._info is None:
            if self._probe is None or self._probe.done():
                self._probe = asyncio.create_task(self.is_ready())
            await asyncio.shield(self._probe)  # all callers that wait share one question to the workers
        if self._info is None:
            raise NotReadyError("no worker is ready yet; try again shortly, or watch /health")
        return self._info

    def check(self, name: str | None) -> None:
        """Raise ModelNotFoundError unless `name` is the served model's, or None or empty."""
        if name not in {None, "", self.name}:
            raise ModelNotFoundError(f"model {name!r} is not served here; this server has {self.name!r}")
