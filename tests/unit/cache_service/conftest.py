from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cache_service.client.client import CacheClient
from cache_service.config import ServerConfig
from cache_service.rpc.server import CacheServer
from cache_service.store.memory import MemoryStore
from cache_service.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def server(clock: FakeClock) -> AsyncIterator[CacheServer]:
    """Run a real server on a port of its own; its leases go by `clock`, and tests call `service.tick`."""
    store = MemoryStore(clock=clock, history=64)
    async with CacheServer(ServerConfig(port=0, grace_s=0.0, tick_s=3600.0), store) as server:
        yield server


@pytest.fixture
async def client(server: CacheServer) -> AsyncIterator[CacheClient]:
    async with CacheClient(f"127.0.0.1:{server.port}", timeout_s=10.0) as client:
        yield client
