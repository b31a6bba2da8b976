"""Deploys the worker on Ray Serve; no other file of this package imports ray."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final

import ray
import torch
from numpy.typing import NDArray
from ray import ObjectRef, serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from cache_service.core.types import ReplicaId
from cache_service.logs import LogsConfig, configure_logs, formatter_of
from workers.api import CopyRequest, GenerateChunk, GenerateRequest
from workers.bicache.copies import EntryCopy, TransferError
from workers.config import CoherenceConfig, WorkerConfig
from workers.errors import WorkerError
from workers.ray_internals import NIXL, READ_IN_PLACE, adapt_serve_logs
from workers.worker import Worker, device_of

OBJECT_STORE: Final = "object_store"
EMPTY_BODY = torch.empty(0, dtype=torch.uint8)
TRIAL_BYTES = 1024

logger = logging.getLogger(__name__)


class NoDirectTransportError(WorkerError):
    """The configured transport between the replicas' memories doesn't run on this machine."""


@dataclass(frozen=True)
class BodyReference:
    """Refers to a body that stays in its holder's memory until it is read there or can no longer be read.

    The wrapper prevents Ray from resolving the reference as if it were the reply itself.
    """

    body: ObjectRef[Any]


@dataclass(frozen=True)
class PackedCopy:
    """Carries a copy between two replicas, with its body in a form that can be sent."""

    copy: EntryCopy
    body: BodyReference | NDArray[Any]

    @classmethod
    def pack(cls, copy: EntryCopy, *, direct: bool) -> PackedCopy:
        rest = replace(copy, body=EMPTY_BODY)
        if direct:
            return cls(rest, BodyReference(ray.put(copy.body, **READ_IN_PLACE)))
        return cls(rest, copy.body.cpu().numpy())

    def unpack(self, timeout_s: float) -> EntryCopy:
        """Return the copy, in newly allocated memory. Raises any error of the transport."""
        if isinstance(self.body, BodyReference):
            return replace(self.copy, body=ray.get(self.body.body, timeout=timeout_s), transport=NIXL)
        return replace(self.copy, body=torch.from_numpy(self.body.copy()), transport=OBJECT_STORE)


class ServeTransport:
    """Fetches copies by calls between replicas of one deployment.

    The request names the replica that the deployment's router calls. The reply holds the copy's body, which travels
    through Ray's object store, or a reference by which the body is read out of the holder's memory.
    """

    def __init__(self, deployment: str, application: str, *, direct: bool, timeout_s: float) -> None:
        """Ask for references if `direct`, and read them within `timeout_s`."""
        self._handle: DeploymentHandle = serve.get_deployment_handle(deployment, application)
        self._direct, self._timeout_s = direct, timeout_s
        self._out_of_reach: set[ReplicaId] = set()

    async def fetch(self, request: CopyRequest) -> EntryCopy | None:
        """Return the holder's copy; None if it has none. Raises TransferError."""
        direct = self._direct and request.holder not in self._out_of_reach
        response = self._handle.send_packed_copy.remote(replace(request, direct=direct))
        try:
            packed: PackedCopy | None = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except (RayError, RayServeException) as error:
            raise TransferError(f"replica {request.holder} didn't answer: {error}") from error
        if packed is None:
            return None
        try:
            return await asyncio.to_thread(packed.unpack, self._timeout_s)
        except Exception as error:  # the direct transport's own errors have no common class
            self._out_of_reach.add(request.holder)
            raise TransferError(f"{request.holder}'s memory couldn't be read: {error}") from error


class DiffusionWorker(Worker):
    """Is the `Worker` that Serve deploys; it gets its identity from Serve."""

    def __init__(self, config: WorkerConfig, logs: LogsConfig) -> None:
        configure_logs(logs)
        adapt_serve_logs(formatter_of(logs))
        context = serve.get_replica_context()
        self._direct = has_direct_transport(config.coherence, device_of(config.device), context.world_size)
        transport = ServeTransport(
            context.deployment,
            context.app_name,
            direct=self._direct,
            timeout_s=config.coherence.fetch_timeout_s,
        )
        super().__init__(config, ReplicaId(context.replica_id.unique_id), context.world_size, transport)

    async def replies(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk | WorkerError, None]:
        """Yield the chunks of `generate`. Yield an error instead of raising it, which Serve would log as a fault."""
        async with aclosing(self.generate(request)) as chunks:
            try:
                async for chunk in chunks:
                    yield chunk
            except WorkerError as error:
                yield error

    async def send_packed_copy(self, request: CopyRequest) -> PackedCopy | None:
        """Return the copy of `send_copy`, packed for another process."""
        copy = await self.send_copy(request)
        if copy is None:
            return None
        return await asyncio.to_thread(PackedCopy.pack, copy, direct=request.direct and self._direct)


def has_direct_transport(config: CoherenceConfig, device: torch.device, num_replicas: int) -> bool:
    """Test whether copies can go directly from one replica's memory to another's.

    Raises NoDirectTransportError if the configuration insists on it.
    """
    wanted = config.tensor_transport
    if config.transfer == "never" or wanted == "object_store":
        return False
    if wanted == "auto" and (device.type != "cuda" or num_replicas < 2):  # a trial starts a thread that never rests
        return False
    try:
        ray.get(ray.put(torch.zeros(TRIAL_BYTES, dtype=torch.uint8, device=device), **READ_IN_PLACE))
    except Exception as error:  # whatever nixl, its plugins or the driver object to
        if wanted == NIXL:
            raise NoDirectTransportError(
                f"worker.coherence.tensor_transport is nixl, which doesn't run here ({error}): install "
                "palimpsest[rdt], or set it to auto or object_store"
            ) from error
        logger.info("copies of prefix entries go through Ray's object store; nixl doesn't run here: %s", error)
        return False
    logger.info("copies of prefix entries go by Ray Direct Transport (nixl)")
    return True
