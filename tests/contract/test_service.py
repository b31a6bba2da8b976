"""Several instances over one store act as one, whatever the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing

import pytest

from cache_service.client.client import CacheClient
from cache_service.config import ServerConfig
from cache_service.core.events import Created, Deleted, Event, Granted, Joined, Left, Released
from cache_service.core.quotas import ContextQuotas
from cache_service.core.types import FIRST_EPOCH, Edit, EditId, Snapshot, TenantId
from cache_service.errors import FencedToken, StaleEpoch, TenantQuotaExceeded, TotalQuotaExceeded, UnknownContext
from cache_service.rpc.server import CacheServer
from cache_service.store.redis.store import RedisStore
from cache_service.testing import FakeClock
from tests.contract.conftest import Backend
from tests.unit.cache_service.builders import ANNA, key, placed


@pytest.fixture
async def clients(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[CacheClient]]:
    """Yield a client of each of two instances that don't follow the log, so they read it only for a call."""
    monkeypatch.setattr(RedisStore, "_follow", lambda store: asyncio.Event().wait())
    quotas = ContextQuotas(max_per_tenant=2, max_total=3)
    config = ServerConfig(port=0, grace_s=0.0, tick_s=3600.0, contexts=quotas)
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(2):
            server = await stack.enter_async_context(CacheServer(config, await backend.open()))
            clients.append(await stack.enter_async_context(CacheClient(f"127.0.0.1:{server.port}", timeout_s=10.0)))
        yield clients


async def test_one_instance_answers_with_what_another_acknowledged(clients: list[CacheClient]) -> None:
    one, two = clients
    for n in range(10):
        lease = await one.register(ANNA, ttl_s=60.0)
        assert await two.keep_alive(lease) == lease
        await one.announce(lease, [placed("a", ANNA, depth=n)])
        assert await two.lookup([key("a")]) == {key("a"): (placed("a", ANNA, depth=n),)}
        build = await one.acquire(lease, key("a"), ttl_s=60.0)
        await two.extend(lease, build)
        assert await two.acquire(lease, key("a"), ttl_s=60.0) == build


async def test_an_epoch_that_one_instance_acknowledged_is_never_behind_on_the_other(
    clients: list[CacheClient],
) -> None:
    one, two = clients
    context = await one.create_context("m", "s", [1], author=ANNA)
    for epoch in range(10):
        version = await one.edit_context(context.id, context.epoch, [Edit(0, 1, (epoch,))], author=ANNA)
        context = await two.get_context(context.id)
        assert context.version == version
        with pytest.raises(StaleEpoch):
            await two.edit_context(context.id, FIRST_EPOCH, [Edit(0, 1, (9,))], author=ANNA)


async def test_contexts_that_were_created_through_either_instance_count_for_both(clients: list[CacheClient]) -> None:
    one, two = clients
    red, blue = TenantId("red"), TenantId("blue")
    first = await one.create_context("m", "s", [1], author=ANNA, tenant=red, edit_id=EditId("first"))
    await two.create_context("m", "s", [2], author=ANNA, tenant=red)
    with pytest.raises(TenantQuotaExceeded, match=r"contexts\.max_per_tenant"):
        await one.create_context("m", "s", [3], author=ANNA, tenant=red)
    assert await two.create_context("m", "s", [1], author=ANNA, tenant=red, edit_id=EditId("first")) == first
    await one.create_context("m", "s", [3], author=ANNA, tenant=blue)
    with pytest.raises(TotalQuotaExceeded, match=r"contexts\.max_total"):
        await two.create_context("m", "s", [4], author=ANNA, tenant=blue)
    await two.delete_context(first.id, author=ANNA)
    await one.create_context("m", "s", [4], author=ANNA, tenant=blue)


async def test_an_expired_context_is_gone_for_all_and_its_builds_are_released_once(backend: Backend) -> None:
    """Both instances look for expired contexts at the same time; a watcher of each sees one deletion."""
    clock = FakeClock()
    config = ServerConfig(port=0, grace_s=0.0, tick_s=3600.0)
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(CacheServer(config, await backend.open(), wall_clock=clock))
            for _ in range(2)
        ]
        clients = [
            await stack.enter_async_context(CacheClient(f"127.0.0.1:{server.port}", timeout_s=10.0))
            for server in servers
        ]
        watches = [await stack.enter_async_context(aclosing(client.watch())) for client in clients]
        for watch in watches:
            await anext(watch)
        lease = await clients[0].register(ANNA, ttl_s=60.0)
        context = await clients[0].create_context("m", "s", [1], author=ANNA, ttl_s=30.0)
        build = await clients[1].acquire(lease, context.key, ttl_s=60.0, context=context.id)
        clock.advance(30.0)
        await asyncio.gather(*(server.service.tick() for server in servers for _ in range(3)))
        for client in clients:
            with pytest.raises(UnknownContext):
                await client.get_context(context.id)
        with pytest.raises(FencedToken):
            await clients[0].extend(lease, build)
        await clients[0].leave(lease)
        for watch in watches:
            kinds = [type(event) async for event in until_left(watch)]
            assert kinds == [Joined, Created, Granted, Deleted, Released, Left]


async def until_left(watch: AsyncIterator[Snapshot | Event]) -> AsyncIterator[Snapshot | Event]:
    async with asyncio.timeout(30.0):
        async for item in watch:
            yield item
            if isinstance(item, Left):
                return
