"""Sizes and allocates an engine's memory: its page pool, and the share of it that prefix entries may fill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from workers.bicache.cache import PrefixCache
from workers.config import KVConfig
from workers.kv.pool import PagePool
from workers.kv.storage import PageStorage
from workers.models.base import ModelConfig

CPU_POOL_BYTES = 1 << 30


@dataclass(frozen=True)
class MemoryBudget:
    """Holds two sizes, which are fixed while the engine runs: requests that don't fit wait."""

    pool_bytes: int
    entry_bytes: int


def memory_budget(kv: KVConfig, device: torch.device) -> MemoryBudget:
    """Return the sizes that `kv` gives on `device`, which holds the model already."""
    pool_bytes = kv.pool_bytes
    if pool_bytes is None and device.type == "cuda":
        torch.cuda.empty_cache()
        free_bytes, _ = torch.cuda.mem_get_info(device)
        pool_bytes = int(free_bytes * kv.device_share)
    elif pool_bytes is None:
        pool_bytes = CPU_POOL_BYTES
    entry_bytes = pool_bytes // 2 if kv.entry_bytes is None else min(kv.entry_bytes, pool_bytes)
    return MemoryBudget(pool_bytes, entry_bytes)


@dataclass(frozen=True)
class Memory:
    """Holds all pages of an engine: their content, their owners, and the prefix entries."""

    storage: PageStorage
    pool: PagePool
    cache: PrefixCache

    @classmethod
    def allocate(
        cls, model: ModelConfig, kv: KVConfig, *, device: torch.device, dtype: torch.dtype, awaits_builds: bool
    ) -> Self:
        """Allocate the memory that `kv` allows. With `awaits_builds`, a new entry waits for `allow_build` or a copy."""
        budget = memory_budget(kv, device)
        storage = PageStorage(
            model, pool_bytes=budget.pool_bytes, page_tokens=kv.page_tokens, dtype=dtype, device=device
        )
        pool = PagePool(storage.num_pages)
        return cls(
            storage, pool, PrefixCache(pool, storage, model, budget_bytes=budget.entry_bytes, awaits=awaits_builds)
        )
