from __future__ import annotations

import asyncio
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from cache_service.store.base import Store
from cache_service.store.memory import MemoryStore
from cache_service.store.redis.store import RedisStore
from cache_service.testing import FakeClock
from cache_service.testing.processes import RedisProcess
from tests.support.requirements import require_redis


class Backend(ABC):
    """Holds one log and opens instances on it."""

    def __init__(self) -> None:
        self.opened: list[Store] = []

    async def open(self) -> Store:
        """Open another instance."""
        store = await self._open()
        self.opened.append(store)
        return store

    @abstractmethod
    async def _open(self) -> Store: ...

    @abstractmethod
    async def pass_time(self, seconds: float) -> None: ...


class MemoryBackend(Backend):
    """Opens the same store for every instance."""

    def __init__(self) -> None:
        super().__init__()
        self._clock = FakeClock()
        self._store = MemoryStore(clock=self._clock, history=256)

    async def _open(self) -> Store:
        return self._store

    async def pass_time(self, seconds: float) -> None:
        self._clock.advance(seconds)


class RedisBackend(Backend):
    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._namespace = uuid.uuid4().hex

    async def _open(self) -> Store:
        return await RedisStore.open(self._url, history=256, timeout_s=5.0, namespace=self._namespace)

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    require_redis()
    with RedisProcess(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., RedisProcess]]:
    started: list[RedisProcess] = []

    def start(*options: str, port: int | None = None) -> RedisProcess:
        server = RedisProcess(tmp_path / str(len(started)), *options, port=port)
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.kill()


@pytest.fixture(params=["memory", "redis"])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    if request.param == "memory":
        backend: Backend = MemoryBackend()
    else:
        backend = RedisBackend(request.getfixturevalue("redis_server").url)
    yield backend
    for store in backend.opened:
        await store.close()
