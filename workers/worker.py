"""Runs one replica: model, engine thread, metrics, and membership in the cache service. Independent of Ray."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack

import torch

from cache_service.core.types import ReplicaId
from workers.api import CopyRequest, GenerateChunk, GenerateRequest, ModelInfo, WorkerStats
from workers.bicache.copies import EntryCopy, Transport, UnreachableTransport
from workers.coherence.estimate import CostModel, Prior
from workers.coherence.membership import Membership
from workers.coherence.tally import Tally
from workers.config import Device, DType, WorkerConfig
from workers.engine.async_engine import AsyncEngine
from workers.engine.factory import create_engine
from workers.errors import EngineClosedError
from workers.metrics import WorkerMetrics
from workers.models.base import ModelConfig
from workers.models.loader import load_model

CPU_FLOPS, GPU_FLOPS = 3e10, 2e14
FETCH_BYTES_PER_S = 1e9

logger = logging.getLogger(__name__)


class Worker:
    """Runs one replica, from `__init__` to `__del__`, which Serve calls."""

    def __init__(
        self,
        config: WorkerConfig,
        replica: ReplicaId,
        num_replicas: int,
        transport: Transport = UnreachableTransport(),  # noqa: B008 (it has no state)
    ) -> None:
        """Load the model and start; `transport` fetches copies from other replicas. Raises UnsupportedModelError."""
        device = device_of(config.device)
        dtype = dtype_of(config.dtype, device)
        if num_threads := num_threads_of(config, device, num_replicas):
            torch.set_num_threads(num_threads)
        started = time.monotonic()
        self._loaded = load_model(config.model, device=device, dtype=dtype)
        logger.info("replica %s loaded %s in %.1f s", replica, self._loaded.name, time.monotonic() - started)
        engine = create_engine(
            self._loaded,
            engine=config.engine,
            kv=config.kv,
            bicache=config.bicache,
            replica=replica,
            device=device,
            dtype=dtype,
            depth_table_version=config.coherence.profile,
            shares_builds=config.cache_service is not None and config.coherence.transfer != "never",
        )
        self._fingerprint = engine.fingerprint
        for num_rows in engine.warm_up():
            logger.info("recorded the steps of %d rows", num_rows)
        self._tally = Tally()
        self._metrics = WorkerMetrics(replica, engine.stats, self._tally)
        self._engine = AsyncEngine(
            engine,
            on_step=[self._metrics.observe_step],
            on_answer=[self._metrics.observe_request],
            on_fault=[self._metrics.count_engine_error],
        )
        self._membership: Membership | None = None
        with ExitStack() as resources:
            if config.cache_service is None:
                resources.enter_context(self._engine)
            else:
                self._membership = membership = Membership(
                    config.cache_service,
                    replica,
                    config.lease_ttl_s,
                    config.coherence,
                    follow_timeout_s=config.bicache.follow_timeout_s,
                    engine=self._engine,
                    transport=transport,
                    entry_format=engine.entries.format,
                    costs=cost_model(self._loaded.config, device),
                    tally=self._tally,
                )
                self._metrics.add_contact(replica, membership.contact)
                self._engine.connect(resources.enter_context(membership))
                resources.enter_context(self._engine)
                resources.callback(membership.drain)
            self._resources = resources.pop_all()

    def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Generate the chunks of an answer; closing the generator stops the work. Raises WorkerError."""
        return self._engine.generate(request)

    async def send_copy(self, request: CopyRequest) -> EntryCopy | None:
        """Return a copy of an entry for another replica; None if no entry here serves the depths."""
        copying = self._engine.call(lambda entries: entries.export(request.key, request.depths))
        copy = await asyncio.wrap_future(copying)
        if copy is None:
            return None
        self._tally.sent += 1
        self._tally.sent_bytes += copy.num_bytes
        return await asyncio.to_thread(copy.sealed)

    async def stats(self) -> WorkerStats:
        return self._engine.stats()

    async def metrics(self) -> str:
        """Return the metrics in Prometheus' text format."""
        return self._metrics.render()

    async def model_info(self) -> ModelInfo:
        config = self._loaded.config
        return ModelInfo(
            name=self._loaded.name,
            fingerprint=self._fingerprint,
            context_length=config.context_length,
            mask_token_id=config.mask_token_id,
            eos_token_id=config.eos_token_id,
        )

    def check_health(self) -> None:
        """Raise EngineClosedError or MembershipEndedError with the reason once the thread of either has ended.

        Serve calls this periodically, and then starts a new replica.
        """
        if not self._engine.is_alive:
            raise EngineClosedError(self._engine.end_reason)
        if self._membership is not None:
            self._membership.check()

    def __del__(self) -> None:
        """Drain, fail open requests, and leave the cache service; Serve calls this at shutdown."""
        if hasattr(self, "_resources"):  # absent where __init__ raised
            self._resources.close()


def device_of(device: Device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def cost_model(model: ModelConfig, device: torch.device) -> CostModel:
    """Return rough estimates of the time of builds and fetches, to use until the first of each is measured.

    The estimate for fetches is optimistic: a fetch then corrects it, while a pessimistic one would never be tested.
    """
    flops = GPU_FLOPS if device.type == "cuda" else CPU_FLOPS
    token_layers = model.context_length * model.num_layers / 4
    return CostModel(
        build=Prior(fixed_s=0.002, unit_s=2 * model.layer_weights / flops, size=token_layers),
        fetch=Prior(fixed_s=0.004, unit_s=1 / FETCH_BYTES_PER_S, size=64e6),
    )


def dtype_of(dtype: DType, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]


def num_threads_of(config: WorkerConfig, device: torch.device, num_replicas: int) -> int | None:
    """Return the configured number of torch's CPU threads; None leaves it to torch, which a replica on a GPU does.

    On a CPU an unconfigured replica takes an equal share of this machine's cores, as if all replicas ran here.
    """
    if config.num_threads is not None or device.type != "cpu":
        return config.num_threads
    return max(1, len(os.sched_getaffinity(0)) // max(1, num_replicas))
