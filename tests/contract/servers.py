"""Help tests of the Redis store that run servers of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cache_service.core.types import Lease, Placement
from cache_service.store.redis.store import RedisStore
from tests.contract.test_store import announce, joined
from tests.support.waiting import until
from tests.unit.cache_service.builders import ANNA, key, placed


@asynccontextmanager
async def opened(url: str, timeout_s: float = 10.0) -> AsyncIterator[RedisStore]:
    store = await RedisStore.open(url, history=256, timeout_s=timeout_s)
    try:
        yield store
    finally:
        await store.close()


async def round_trip(url: str) -> None:
    """Announce an entry under a lease, and wait until a second instance has it."""
    async with opened(url) as one, opened(url) as two:
        lease: Lease = await joined(one, ANNA)
        entry: Placement = placed("a", ANNA)
        await announce(two, lease, entry)
        assert await two.renew(lease)
        assert await two.lapsed() == frozenset()
        await one.sync()
        assert one.state.directory.lookup([key("a")]) == {key("a"): (entry,)}
        seen = one.state.revision
        await announce(two, lease, placed("b", ANNA))
        await until(lambda: one.state.revision > seen)
