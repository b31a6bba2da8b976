"""A context whose author never learns of its creation is deleted again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from cache_service.client.client import CacheClient
from cache_service.config import ServerConfig
from cache_service.core.types import Context, Revision
from cache_service.errors import CacheServiceUnavailable
from cache_service.rpc.server import CacheServer
from cache_service.store.memory import MemoryStore
from cache_service.testing import FakeClock
from cluster.errors import ContextsUnavailableError
from cluster.generation.contexts.drafting import Draft, TokenContent
from cluster.generation.contexts.editing import ContextService
from cluster.metrics import IngressMetrics
from tests.support.waiting import until


class DeafClient(CacheClient):
    """Carries creations out, and loses the answers to the first tries."""

    def __init__(self, target: str) -> None:
        super().__init__(target, timeout_s=10.0)
        self.num_lost, self.is_silent = 0, False
        self.is_created = asyncio.Event()

    async def create_context(self, *args: Any, **kwargs: Any) -> Context:
        made = await super().create_context(*args, **kwargs)
        self.is_created.set()
        if self.num_lost > 0:
            self.num_lost -= 1
            if self.is_silent:
                await asyncio.Event().wait()
            raise CacheServiceUnavailable("no answer within the timeout")
        return made


class Encoder:
    async def run(self, length: int, work: Callable[[Any], Any]) -> Draft:
        return Draft((1, 2, 3), ())


async def model() -> Any:
    return SimpleNamespace(fingerprint="f", context_length=64, mask_token_id=9)


@pytest.fixture
async def server() -> AsyncIterator[CacheServer]:
    store = MemoryStore(clock=FakeClock(), history=64)
    async with CacheServer(ServerConfig(port=0, grace_s=0.0, tick_s=3600.0), store) as server:
        yield server


@pytest.fixture
async def client(server: CacheServer) -> AsyncIterator[DeafClient]:
    async with DeafClient(f"127.0.0.1:{server.port}") as client:
        yield client


def service_of(client: CacheClient, patience_s: float) -> ContextService:
    return ContextService(client, Encoder(), model, IngressMetrics(), patience_s=patience_s)  # type: ignore[arg-type]


def num_contexts(server: CacheServer) -> int:
    return len(server.service.store.state.contexts)


def num_made(server: CacheServer) -> int:
    return sum(event.kind == "created" for event in server.service.store.feed.read(Revision(0), 64))


CONTENT = TokenContent((1, 2, 3))


async def test_a_creation_that_took_too_long_is_undone(server: CacheServer, client: DeafClient) -> None:
    client.num_lost = 1
    with pytest.raises(ContextsUnavailableError):
        await service_of(client, 0.0).create(CONTENT, "red")
    await until(lambda: num_made(server) == 1 and num_contexts(server) == 0)


async def test_a_creation_that_was_cancelled_is_undone(server: CacheServer, client: DeafClient) -> None:
    client.num_lost, client.is_silent = 1, True
    service = service_of(client, 10.0)
    creating = asyncio.create_task(service.create(CONTENT, "red"))
    await client.is_created.wait()
    creating.cancel()
    await until(lambda: num_made(server) == 1 and num_contexts(server) == 0)


async def test_a_creation_that_is_answered_at_a_later_try_stays(server: CacheServer, client: DeafClient) -> None:
    client.num_lost = 2
    made = await service_of(client, 10.0).create(CONTENT, "red")
    assert server.service.store.state.contexts.all() == (made,)
