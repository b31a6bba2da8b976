"""A Redis-protocol server that evicts keys is refused; where it is allowed, no loss goes unnoticed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import redis

from cache_service.core.types import FIRST_EPOCH, DepthLimit, EditId
from cache_service.errors import CacheServiceUnavailable, InvalidRequest, LeaseRefused
from cache_service.rpc.service import CacheService
from cache_service.store.redis.store import RedisStore
from cache_service.testing.processes import RedisProcess
from tests.contract.servers import opened
from tests.contract.test_store import announce, facts, joined
from tests.support.requirements import needs_redis
from tests.unit.cache_service.builders import ANNA, BORIS, key, placed

pytestmark = needs_redis
TABLES = ["members", "placements", "contexts", "builds", "limits"]


@asynccontextmanager
async def allowed(url: str) -> AsyncIterator[RedisStore]:
    store = await RedisStore.open(url, history=256, timeout_s=10.0, allow_eviction=True)
    try:
        yield store
    finally:
        await store.close()


def set_policy(server: RedisProcess, policy: str) -> None:
    with redis.Redis(port=server.port) as client:
        client.config_set("maxmemory-policy", policy)


def evict(server: RedisProcess, *names: str) -> None:
    with redis.Redis(port=server.port) as client:
        assert client.delete(*(f"{{palimpsest}}:{name}" for name in names)) == len(names)


async def filled(store: RedisStore) -> None:
    """Put a fact into each table."""
    lease = await joined(store, ANNA)
    await announce(store, lease, placed("a", ANNA))
    await store.append(lambda s, at: s.report_drift(lease, [DepthLimit(key("a"), 60, 2, 1)], at))
    await store.append(lambda s, at: s.contexts.create("m", "s", [1], [], EditId("c"), BORIS, at))
    await store.append(lambda s, at: s.acquire(lease, key("b"), FIRST_EPOCH, None, 60.0, at))


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random"])
async def test_a_server_that_evicts_keys_without_a_ttl_is_refused(
    start: Callable[..., RedisProcess], policy: str
) -> None:
    server = start("--maxmemory-policy", policy)
    with pytest.raises(InvalidRequest, match=f"maxmemory-policy {policy}.*noeviction.*allow_evicting_store"):
        await RedisStore.open(server.url, history=1)
    async with allowed(server.url) as store:
        assert store.may_evict
        metrics = CacheService(store).metrics.registry
        assert metrics.get_sample_value("palimpsest_cache_store_may_evict") == 1


@pytest.mark.parametrize("policy", ["noeviction", "volatile-lru"])
async def test_a_server_that_keeps_keys_without_a_ttl_is_accepted(
    start: Callable[..., RedisProcess], policy: str
) -> None:
    async with opened(start("--maxmemory-policy", policy).url) as store:
        assert not store.may_evict


async def test_a_server_that_comes_back_with_an_evicting_policy_is_not_served_from(
    start: Callable[..., RedisProcess],
) -> None:
    server = start()
    async with opened(server.url) as store:
        set_policy(server, "allkeys-lru")
        with redis.Redis(port=server.port) as client:
            client.flushall()
            client.script_flush()
        with pytest.raises(CacheServiceUnavailable, match="noeviction"):
            await store.sync()


@pytest.mark.parametrize("table", TABLES)
async def test_a_table_that_is_missing_begins_a_new_incarnation_for_all(
    start: Callable[..., RedisProcess], table: str
) -> None:
    server = start("--maxmemory-policy", "allkeys-lru")
    async with allowed(server.url) as store, allowed(server.url) as other:
        await filled(store)
        await other.sync()
        incarnation, revision = store.incarnation, store.state.revision
        kept = () if table == "contexts" else store.state.contexts.all()
        lease = store.state.directory.lease_of(ANNA)
        evict(server, table)
        with pytest.raises(LeaseRefused):
            await announce(store, lease, placed("b", ANNA))
        assert store.incarnation != incarnation
        assert store.state.revision > revision
        assert (store.state.contexts.all(), store.state.depths.all(), store.state.builds.all()) == (kept, (), ())
        store.state.check_integrity()
        await announce(other, await joined(other, ANNA), placed("a", ANNA))
        await store.sync()
        assert other.incarnation == store.incarnation
        assert facts(other.state) == facts(store.state)
        async with allowed(server.url) as newcomer:
            assert facts(newcomer.state) == facts(store.state)


async def test_a_lost_head_leaves_nothing_of_its_history(start: Callable[..., RedisProcess]) -> None:
    server = start("--maxmemory-policy", "allkeys-lru")
    async with allowed(server.url) as store:
        await filled(store)
        incarnation = store.incarnation
        evict(server, "meta")
        await store.sync()
        assert store.incarnation != incarnation
        assert (store.state.revision, store.state.contexts.all(), store.state.directory.members()) == (0, (), ())


async def test_a_table_that_is_emptied_by_its_users_is_no_loss(start: Callable[..., RedisProcess]) -> None:
    async with opened(start().url) as store:
        await filled(store)
        incarnation = store.incarnation
        lease = store.state.directory.lease_of(ANNA)
        await store.append(lambda s, at: s.leave(lease, at))
        await store.append(lambda s, at: s.delete(s.contexts.all()[0].id, BORIS, at))
        await joined(store, ANNA)
        await store.sync()
        assert store.incarnation == incarnation
