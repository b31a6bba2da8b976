"""How many bytes the page pool gets, and how many of them prefix entries may fill."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from workers.config import KVConfig

CPU_POOL_BYTES = 1 << 30


@dataclass(frozen=True)
class MemoryBudget:
    """Both fixed for an engine's life: more load waits, it doesn't take more memory."""

    pool_bytes: int
    entry_bytes: int


def memory_budget(kv: KVConfig, device: torch.device) -> MemoryBudget:
    """Call it once the model is on its device."""
    pool_bytes = kv.pool_bytes
    if pool_bytes is None and device.type == "cuda":
        torch.cuda.empty_cache()
        free_bytes, _ = torch.cuda.mem_get_info(device)
        pool_bytes = int(free_bytes * kv.device_share)
    elif pool_bytes is None:
        pool_bytes = CPU_POOL_BYTES
    entry_bytes = pool_bytes // 2 if kv.entry_bytes is None else min(kv.entry_bytes, pool_bytes)
    return MemoryBudget(pool_bytes, entry_bytes)
