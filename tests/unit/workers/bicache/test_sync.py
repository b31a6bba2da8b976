"""The bridge against a real cache service, with outages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack

import pytest
import torch

from cache_service.client import CacheClient
from cache_service.config import ServerConfig
from cache_service.errors import CacheServiceUnavailable
from cache_service.server import CacheServer
from cache_service.store.memory import MemoryStore
from cache_service.testing import FakeClock, free_port
from cache_service.types import Placement, PrefixKey, ReplicaId
from tests.unit.workers.tiny import TINY
from workers.bicache.cache import PrefixCache
from workers.bicache.entry import Changes, PrefixEntry
from workers.bicache.sync import SyncThread
from workers.kv.pool import PagePool
from workers.kv.storage import PageStorage

REPLICA = ReplicaId("worker#1")
TTL_S = 0.6
POLL_S = 0.02
KEYS = [PrefixKey(b"a" * 20), PrefixKey(b"b" * 20)]


def server_on(port: int) -> CacheServer:
    """Leases there go by a clock that stands still."""
    return CacheServer(ServerConfig(port=port, grace_s=0.0, tick_s=3600.0), MemoryStore(clock=FakeClock(), history=64))


def entries() -> list[PrefixEntry]:
    storage = PageStorage(TINY, pool_bytes=1 << 20, page_tokens=4, dtype=torch.float32, device=torch.device("cpu"))
    cache = PrefixCache(PagePool(storage.num_pages), storage, TINY, budget_bytes=1 << 20)
    handles = [cache.admit(key, tuple(range(length)), {2}, asker="x") for key, length in zip(KEYS, (5, 9), strict=True)]
    return [handle.entry for handle in handles if handle]


@pytest.fixture
async def port() -> int:
    return free_port()


@pytest.fixture
async def client(port: int) -> AsyncIterator[CacheClient]:
    async with CacheClient(f"127.0.0.1:{port}", timeout_s=5.0) as client:
        yield client


async def until(view: Callable[[], Awaitable[object]], wanted: object) -> None:
    while True:
        if await view() == wanted:
            return
        await asyncio.sleep(POLL_S)


def held(client: CacheClient) -> Callable[[], Awaitable[Sequence[int]]]:
    """The token counts of the entries that the service knows of."""

    async def view() -> Sequence[int]:
        try:
            found = await client.lookup(KEYS)
        except CacheServiceUnavailable:  # the test's own connection is still finding the new server
            return []
        placements: list[Placement] = [placement for key in KEYS for placement in found.get(key, ())]
        assert all(placement.replica == REPLICA for placement in placements)
        return [placement.num_tokens for placement in placements]

    return view


async def test_entries_are_announced_withdrawn_and_left(port: int, client: CacheClient) -> None:
    first, second = entries()
    async with server_on(port):
        with ExitStack() as stack:
            sync = stack.enter_context(SyncThread(f"127.0.0.1:{port}", REPLICA, TTL_S))
            sync.apply(Changes(built=[first, second]))
            await until(held(client), [5, 9])
            sync.apply(Changes(gone=[first.key]))
            await until(held(client), [9])
            await asyncio.to_thread(stack.close)
        await until(held(client), [])


async def test_a_service_that_forgot_everything_is_told_again(port: int, client: CacheClient) -> None:
    with SyncThread(f"127.0.0.1:{port}", REPLICA, TTL_S) as sync:
        sync.apply(Changes(built=entries()))  # nobody listens yet
        for _ in range(2):
            async with server_on(port):
                await until(held(client), [5, 9])
