"""Store the log of events in this process or in a Redis-protocol server.

Terms: docs/glossary.md.
"""

from __future__ import annotations

from collections.abc import Callable

from cache_service.errors import InvalidRequest
from cache_service.store.base import Store
from cache_service.store.memory import MemoryStore

MEMORY_URL = "memory:"


async def open_store(
    url: str, *, history: int, timeout_s: float, clock: Callable[[], float], allow_eviction: bool = False
) -> Store:
    """Open the store that `url` names; see `cache_service.store.redis.connect` for all but `memory:`.

    Raises CacheServiceUnavailable, InvalidRequest.
    """
    if url == MEMORY_URL:
        return MemoryStore(clock=clock, history=history)
    try:
        from cache_service.store.redis.store import RedisStore
    except ModuleNotFoundError as error:
        raise InvalidRequest(
            f"store: every URL but {MEMORY_URL} needs the extra `redis` of this package: {error}"
        ) from error
    return await RedisStore.open(url, history=history, timeout_s=timeout_s, allow_eviction=allow_eviction)
