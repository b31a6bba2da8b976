"""Creates an engine from a loaded model and its configuration."""

from __future__ import annotations

import torch

from cache_service.core.types import ReplicaId
from workers.attention.base import Backend
from workers.attention.sdpa import SdpaBackend
from workers.bicache.depth import DepthLimits, DepthTable, Evidence
from workers.bicache.entry_table import EntryCommands
from workers.config import BiCacheConfig, EngineConfig, KVConfig
from workers.engine.engine import Engine
from workers.engine.identity import entry_format
from workers.engine.memory import Memory
from workers.engine.runner import Runner
from workers.engine.validation import RequestResolver
from workers.errors import UnsupportedModelError
from workers.kv.storage import PageStorage
from workers.models.base import ModelConfig
from workers.models.loader import LoadedModel
from workers.scheduler.admission import Admission
from workers.scheduler.reuse import ReuseRule
from workers.scheduler.scheduler import Scheduler


def create_engine(
    loaded: LoadedModel,
    *,
    engine: EngineConfig,
    kv: KVConfig,
    bicache: BiCacheConfig,
    replica: ReplicaId,
    device: torch.device,
    dtype: torch.dtype,
    depth_table_version: int = 0,
    shares_builds: bool = False,
) -> Engine:
    """Return an engine whose pages are allocated.

    `device` and `dtype` are the model's. With `shares_builds`, a new entry is built once `entries.allow_build` is
    called for it, so that an observer of the engine's changes has to do that.
    """
    model = loaded.config
    memory = Memory.allocate(model, kv, device=device, dtype=dtype, awaits_builds=shares_builds)
    table, evidence, limits = (
        DepthTable.for_model(model, loaded.depth_table),
        Evidence(),
        DepthLimits(depth_table_version),
    )
    rule = ReuseRule(model.num_layers, table, evidence, limits, bicache)
    admission = Admission(
        model, memory.storage, memory.pool, memory.cache, rule, table, num_entry_depths=bicache.entry_depths
    )
    format_ = entry_format(loaded, table, bicache, device=device, dtype=dtype)
    return Engine(
        requests=RequestResolver(model, engine, bicache),
        scheduler=Scheduler(engine, model, admission, memory.cache, rule, replica=replica),
        runner=Runner(
            loaded.model,
            memory.storage,
            attention_backend(memory.storage, model),
            num_probe_positions=bicache.probe_positions,
        ),
        memory=memory,
        entries=EntryCommands(memory.cache, memory.storage, evidence, limits, model, format_),
        replica=replica,
    )


def attention_backend(storage: PageStorage, model: ModelConfig) -> Backend:
    """Return the reference backend on a CPU, and the Triton kernels on a GPU; Triton is imported only there.

    Raises UnsupportedModelError on a GPU for a model that masks attention.
    """
    if storage.device.type != "cuda":
        return SdpaBackend(storage, model.attention_mask)
    if model.attention_mask is not None:
        raise UnsupportedModelError(
            f"{model.architecture} models mask attention, which the kernels for a GPU don't compute; "
            "set worker.device to cpu"
        )
    from workers.attention.ragged import RaggedBackend

    return RaggedBackend(storage.rows, page_tokens=storage.page_tokens, num_heads=model.num_heads)
