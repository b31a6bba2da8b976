"""Check the metrics that an operator reads from a real server."""

from __future__ import annotations

from contextlib import aclosing

import pytest
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from cache_service.client.client import CacheClient
from cache_service.config import ServerConfig
from cache_service.core.quotas import ContextQuotas
from cache_service.core.types import Edit, Lease, LeaseId, Revision
from cache_service.errors import FencedToken, LeaseRefused, StaleEpoch, TenantQuotaExceeded
from cache_service.rpc.server import CacheServer
from cache_service.store.memory import MemoryStore
from cache_service.testing import FakeClock
from tests.unit.cache_service.builders import ANNA, BORIS, key, placed


def read(server: CacheServer, name: str, **labels: str) -> float | None:
    return server.service.metrics.registry.get_sample_value(f"palimpsest_cache_{name}", labels)


async def test_calls_and_state_are_counted(server: CacheServer, client: CacheClient) -> None:
    lease = await client.register(ANNA, ttl_s=5.0)
    await client.announce(lease, [placed("a", ANNA), placed("b", ANNA)])
    with pytest.raises(LeaseRefused):
        await client.announce(Lease(LeaseId(0), BORIS, 1.0), [])
    assert read(server, "revision") == read(server, "history_events") == 3
    assert read(server, "placements") == 2
    assert read(server, "members") == 1
    assert read(server, "contexts") == read(server, "builds") == 0
    assert read(server, "calls_total", method="Announce", code="OK") == 1
    assert read(server, "calls_total", method="Announce", code="FAILED_PRECONDITION") == 1
    assert read(server, "refusals_total", method="Announce", reason="lease-refused") == 1
    assert read(server, "events_total", kind="announced") == 2
    assert read(server, "call_seconds_count", method="Announce") == 2


async def test_refusals_over_a_quota_are_counted_by_reason(clock: FakeClock) -> None:
    config = ServerConfig(port=0, grace_s=0.0, contexts=ContextQuotas(max_per_tenant=1))
    async with (
        CacheServer(config, MemoryStore(clock=clock)) as server,
        CacheClient(f"127.0.0.1:{server.port}", timeout_s=10.0) as client,
    ):
        await client.create_context("model", "salt", [1, 2], author=ANNA)
        with pytest.raises(TenantQuotaExceeded):
            await client.create_context("model", "salt", [1, 2], author=ANNA)
        assert (read(server, "contexts"), read(server, "context_tokens")) == (1, 2)
        assert read(server, "refusals_total", method="Create", reason="tenant-quota-exceeded") == 1


async def test_the_exposition_is_valid_openmetrics(server: CacheServer, client: CacheClient) -> None:
    await client.register(ANNA, ttl_s=5.0)
    encode, _ = choose_encoder("application/openmetrics-text; version=1.0.0")
    text = encode(server.service.metrics.registry).decode()
    names = {family.name for family in text_string_to_metric_families(text)}
    assert {"palimpsest_cache_calls", "palimpsest_cache_call_seconds", "palimpsest_cache_members"} <= names


async def test_an_edit_that_lost_its_race_and_a_fenced_build_are_counted_apart(
    server: CacheServer, client: CacheClient, clock: FakeClock
) -> None:
    lease = await client.register(ANNA, ttl_s=60.0)
    context = await client.create_context("model", "salt", [1, 2], author=ANNA)
    await client.edit_context(context.id, context.epoch, [Edit(0, 1, (9,))], author=ANNA)
    with pytest.raises(StaleEpoch):
        await client.edit_context(context.id, context.epoch, [Edit(0, 1, (8,))], author=BORIS)
    build = await client.acquire(lease, key("a"), ttl_s=1.0)
    assert read(server, "builds") == 1
    clock.advance(2.0)
    await server.service.tick()
    with pytest.raises(FencedToken):
        await client.complete(lease, build, placed("a", ANNA))
    assert read(server, "refusals_total", method="Commit", reason="stale-epoch") == 1
    assert read(server, "refusals_total", method="Complete", reason="fenced-token") == 1
    assert read(server, "events_total", kind="granted") == 1
    assert read(server, "lapses_total", what="build") == 1
    assert read(server, "lapses_total", what="member") is None
    clock.advance(60.0)
    await server.service.tick()
    assert read(server, "lapses_total", what="member") == 1


async def test_the_store_is_timed_by_operation(server: CacheServer, client: CacheClient) -> None:
    lease = await client.register(ANNA, ttl_s=60.0)
    await client.keep_alive(lease)
    await client.lookup([key("a")])
    ticks = read(server, "store_seconds_count", operation="lapsed")
    await server.service.tick()
    assert read(server, "store_seconds_count", operation="commit") == 1
    assert read(server, "store_seconds_count", operation="renew") == 1
    assert read(server, "store_seconds_count", operation="sync") == 2
    assert ticks is not None
    assert read(server, "store_seconds_count", operation="lapsed") == ticks + 1


async def test_a_watcher_that_is_not_read_lags(clock: FakeClock) -> None:
    async with CacheServer(ServerConfig(port=0, grace_s=0.0), MemoryStore(clock=clock)) as server:
        service = server.service
        assert read(server, "watcher_lag_revisions") == 0
        incarnation = service.store.incarnation
        await service.append(lambda state, at: state.register(ANNA, 60.0, at))
        async with aclosing(service.watch(Revision(0), incarnation)) as slow:
            await anext(slow)
            for _ in range(3):
                await service.append(lambda state, at: state.register(ANNA, 60.0, at))
            revision = service.store.state.revision
            assert read(server, "watcher_lag_revisions") == revision
            await anext(slow)
            assert read(server, "watcher_lag_revisions") == revision - 1
        assert read(server, "watcher_lag_revisions") == 0
