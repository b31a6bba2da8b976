"""Where the log of events lives: in this process, or in a Redis-protocol server."""

from __future__ import annotations

from collections.abc import Callable

from cache_service.store.base import Store
from cache_service.store.memory import MemoryStore

MEMORY_URL = "memory:"


async def open_store(url: str, *, history: int, timeout_s: float, clock: Callable[[], float]) -> Store:
    """The store that `url` names; see `cache_service.store.redis.connect` for all but `memory:`."""
    if url == MEMORY_URL:
        return MemoryStore(clock=clock, history=history)
    from cache_service.store.redis.store import RedisStore

    return await RedisStore.open(url, history=history, timeout_s=timeout_s)
