"""A store must survive a Redis-protocol server that restarts, forgets or is paused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import redis

from cache_service.core.types import DepthLimit, Revision
from cache_service.errors import CacheServiceUnavailable, Compacted, LeaseRefused
from cache_service.store.redis.codec import encode
from cache_service.store.redis.scripts import APPEND, REVISION_JUMP, Script
from cache_service.store.redis.store import RedisStore
from cache_service.testing import free_port
from cache_service.testing.processes import RedisProcess
from tests.contract.servers import opened
from tests.contract.test_store import announce, facts, joined
from tests.support.requirements import needs_redis
from tests.support.waiting import until
from tests.unit.cache_service.builders import ANNA, BORIS, key, placed

pytestmark = needs_redis
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


async def test_a_restarted_server_begins_a_new_incarnation_and_never_repeats_a_revision(
    start: Callable[..., RedisProcess],
) -> None:
    server = start(*DURABLE)
    async with opened(server.url) as store, opened(server.url) as other:
        lease = await joined(store, ANNA)
        await announce(store, lease, placed("a", ANNA))
        incarnation, revision = store.incarnation, store.state.revision
        server.kill()
        with pytest.raises(CacheServiceUnavailable, match="--store"):
            await store.sync()
        server.start()
        await store.lapsed()  # as the tick of each instance does
        assert store.incarnation != incarnation
        assert store.state.revision >= revision + REVISION_JUMP
        assert store.state.directory.lookup([key("a")]) == {key("a"): (placed("a", ANNA),)}
        with pytest.raises(Compacted):
            store.feed.read(revision, 1)
        await announce(other, lease, placed("b", ANNA))
        await store.sync()
        assert facts(other.state) == facts(store.state)
        assert other.incarnation == store.incarnation


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_server_that_forgot_everything_begins_a_new_incarnation(
    start: Callable[..., RedisProcess], restarted: bool
) -> None:
    server = start()
    async with opened(server.url) as store:
        lease = await joined(store, ANNA)
        incarnation = store.incarnation
        if restarted:
            server.kill()
            server.start()
        else:
            with redis.Redis(port=server.port) as client:
                client.flushall()
        with pytest.raises(LeaseRefused):
            await announce(store, lease, placed("a", ANNA))
        assert not await store.renew(lease)
        assert store.incarnation != incarnation
        assert store.state.revision == 0
        await announce(store, await joined(store, ANNA), placed("a", ANNA))


async def test_events_of_another_incarnation_never_follow_known_ones(start: Callable[..., RedisProcess]) -> None:
    """An emptied server counts from the start again: its log soon reaches revisions that an idle instance expects."""
    server = start()
    async with opened(server.url) as writer, opened(server.url) as idle:
        await joined(writer, BORIS)
        await idle.sync()
        known = idle.incarnation
        with redis.Redis(port=server.port) as client:
            client.flushall()
        lease = await joined(writer, ANNA)
        await announce(writer, lease, placed("a", ANNA), placed("b", ANNA))
        await until(lambda: idle.state.revision == writer.state.revision)
        assert idle.incarnation == writer.incarnation != known
        assert facts(idle.state) == facts(writer.state)


async def test_an_append_that_a_loss_overtook_leaves_no_trace(
    start: Callable[..., RedisProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    async with opened(server.url) as store:
        run = store._run

        async def run_and_lose(script: Script, keys: list[str], args: list[Any]) -> Any:
            answer = await run(script, keys, args)
            if script is APPEND:
                with redis.Redis(port=server.port) as client:
                    client.flushall()
                await store.sync()
            return answer

        monkeypatch.setattr(store, "_run", run_and_lose)
        await joined(store, ANNA)
        assert (store.state.revision, store.state.directory.members()) == (0, ())


async def test_an_instance_that_fell_behind_the_log_takes_the_whole_state(start: Callable[..., RedisProcess]) -> None:
    server = start()
    async with opened(server.url) as writer, opened(server.url) as sleeper:
        assert sleeper._following is not None
        sleeper._following.cancel()
        lease = await joined(writer, ANNA)
        with redis.Redis(port=server.port) as client:
            for n in range(5):
                await announce(writer, lease, *(placed(f"{n}.{i}", ANNA) for i in range(100)))
            client.xtrim("{palimpsest}:log", maxlen=1, approximate=False)
        await sleeper.sync()
        assert facts(sleeper.state) == facts(writer.state)


async def test_a_paused_server_is_unavailable_in_time_and_later_serves_again(
    start: Callable[..., RedisProcess],
) -> None:
    server = start()
    async with opened(server.url, timeout_s=1.0) as store:
        lease = await joined(store, ANNA)
        server.pause()
        with pytest.raises(CacheServiceUnavailable):
            await announce(store, lease, placed("a", ANNA))
        with pytest.raises(CacheServiceUnavailable):
            await store.sync()
        server.resume()
        await announce(store, lease, placed("b", ANNA))
        assert key("b") in store.state.directory.lookup([key("b")])


async def test_nothing_is_under_way_once_a_store_is_closed(start: Callable[..., RedisProcess]) -> None:
    server = start()
    async with opened(server.url) as store:
        syncing = [asyncio.create_task(store.sync())]
        await asyncio.sleep(0)  # this call is under way
        server.pause()
        syncing.append(asyncio.create_task(store.sync()))
        await asyncio.sleep(0.1)  # and this one waits for its turn
    assert asyncio.all_tasks() - {asyncio.current_task(), *syncing} == set()
    await asyncio.gather(*syncing, return_exceptions=True)


async def test_an_absent_server_is_an_error_at_once() -> None:
    with pytest.raises(CacheServiceUnavailable, match="--store"):
        await RedisStore.open(f"redis://127.0.0.1:{free_port()}/0", history=1)


def test_a_revision_is_exact_in_the_scripts_however_large(start: Callable[..., RedisProcess]) -> None:
    """Lua's numbers are doubles, and its default format keeps 14 digits."""
    server = start()

    async def commit_far_out() -> Revision:
        async with opened(server.url) as store:
            with redis.Redis(port=server.port) as client:
                client.hset("{palimpsest}:meta", "head", str(2**50))
            await joined(store, ANNA)
            await store.sync()
            return store.state.revision

    assert asyncio.run(commit_far_out()) == 2**50 + 1


async def test_an_instance_follows_the_log_again_after_an_unexpected_failure(
    start: Callable[..., RedisProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache_service.background.RESTART_S", 0.01)
    failures: list[Exception] = [LookupError()]
    whole = RedisStore._follow

    async def follow(store: RedisStore) -> None:
        if failures:
            raise failures.pop()
        await whole(store)

    monkeypatch.setattr(RedisStore, "_follow", follow)
    server = start()
    async with opened(server.url) as store, opened(server.url) as other:
        await joined(other, ANNA)
        await until(lambda: store.state.revision == other.state.revision)
        assert not failures


async def test_an_instance_that_has_ceased_to_follow_the_log_fails_its_ticks(
    start: Callable[..., RedisProcess],
) -> None:
    server = start()
    async with opened(server.url) as store:
        assert await store.lapsed() == frozenset()
        following, store._following = store._following, asyncio.create_task(asyncio.sleep(0))
        await store._following
        with pytest.raises(CacheServiceUnavailable, match="follows the log"):
            await store.lapsed()
        store._following = following


async def test_limits_without_a_placement_that_an_older_version_kept_are_removed(
    start: Callable[..., RedisProcess],
) -> None:
    server = start()
    kept, orphan = DepthLimit(key("a"), 60, 2, 1), DepthLimit(key("b"), 60, 2, 1)
    async with opened(server.url) as store:
        lease = await joined(store, ANNA)
        await announce(store, lease, placed("a", ANNA))
        await store.append(lambda state, at: state.report_drift(lease, [kept], at))
        _, field, value = encode(orphan)
        with redis.Redis.from_url(server.url) as client:
            client.hset("{palimpsest}:limits", field, value)  # type: ignore[arg-type]
        async with opened(server.url) as second:
            assert second.state.depths.all() == (kept,)
            await announce(store, lease, placed("b", ANNA))
            await second.sync()
            async with opened(server.url) as third:
                assert facts(third.state) == facts(second.state) == facts(store.state)
                assert third.state.depths.all() == (kept,)
