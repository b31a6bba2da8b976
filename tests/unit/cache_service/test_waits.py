from __future__ import annotations

import asyncio
from contextlib import aclosing

from cache_service.client.client import CacheClient
from cache_service.client.waits import BuildWaits
from cache_service.core.events import Built, Event, Granted, Released
from cache_service.core.mirror import Mirror
from cache_service.core.types import FIRST_EPOCH, Build, FencingToken, Revision, Snapshot
from tests.unit.cache_service.builders import ANNA, BORIS, key, placed

LONG_S = 30.0


def build_of(token: int) -> Build:
    return Build(key(f"{token}"), FIRST_EPOCH, ANNA, FencingToken(token), 5.0)


def event(kind: type[Granted | Built | Released], token: int, revision: int) -> Event:
    return kind(Revision(revision), build_of(token))


class Watch:
    """Feeds a mirror, which is at revision 2, and the waits."""

    def __init__(self) -> None:
        self.mirror = Mirror()
        self.waits = BuildWaits(self.mirror)
        self.take(Snapshot(Revision(2), (), ()))

    def take(self, item: Snapshot | Event) -> None:
        self.waits.take(self.mirror.take(item))


async def test_a_wait_ends_with_its_build() -> None:
    watch = Watch()
    watch.take(event(Granted, 3, 3))
    waiting = asyncio.create_task(watch.waits.wait_for_end(build_of(3), LONG_S))
    await asyncio.sleep(0)
    watch.take(event(Granted, 4, 4))
    watch.take(event(Released, 4, 5))
    await asyncio.sleep(0)
    assert not waiting.done()
    watch.take(event(Built, 3, 6))
    assert await waiting


async def test_a_wait_that_is_cancelled_just_as_the_build_ends_stays_cancelled() -> None:
    watch = Watch()
    watch.take(event(Granted, 3, 3))
    waiting = asyncio.create_task(watch.waits.wait_for_end(build_of(3), LONG_S))
    for _ in range(3):
        await asyncio.sleep(0)
    watch.take(event(Released, 3, 4))
    await asyncio.sleep(0)
    was_over = not waiting.cancel()
    await asyncio.wait([waiting])
    assert was_over or waiting.cancelled()


async def test_a_build_that_ended_before_the_wait_began_is_over() -> None:
    watch = Watch()
    watch.take(event(Granted, 3, 3))
    watch.take(event(Released, 3, 4))
    assert await watch.waits.wait_for_end(build_of(3), LONG_S)


async def test_a_wait_may_begin_before_the_watch_knows_the_build() -> None:
    watch = Watch()
    waiting = asyncio.create_task(watch.waits.wait_for_end(build_of(3), LONG_S))
    await asyncio.sleep(0)
    watch.take(event(Granted, 3, 3))
    watch.take(event(Built, 3, 4))
    assert await waiting


async def test_a_snapshot_ends_what_it_does_not_list() -> None:
    watch = Watch()
    watch.take(Snapshot(Revision(3), (), (), builds=(build_of(2), build_of(3))))
    waiting = asyncio.create_task(watch.waits.wait_for_end(build_of(2), LONG_S))
    await asyncio.sleep(0)
    watch.take(Snapshot(Revision(9), (), (), builds=(build_of(3),)))
    assert await waiting
    assert not await watch.waits.wait_for_end(build_of(3), 0.01)


async def test_a_snapshot_of_a_service_that_lost_its_memory_ends_a_wait_for_a_later_build() -> None:
    watch = Watch()
    waiting = asyncio.create_task(watch.waits.wait_for_end(build_of(7), LONG_S))
    await asyncio.sleep(0)
    watch.take(Snapshot(Revision(1), (), ()))
    assert await waiting


async def test_the_loser_of_an_acquisition_waits_for_the_winner(client: CacheClient) -> None:
    anna, boris = await client.register(ANNA, ttl_s=60.0), await client.register(BORIS, ttl_s=60.0)
    mirror = Mirror()
    waits = BuildWaits(mirror)

    async def follow() -> None:
        async with aclosing(client.watch()) as watch:
            async for item in watch:
                waits.take(mirror.take(item))

    following = asyncio.create_task(follow())
    mine = await client.acquire(anna, key("a"), ttl_s=60.0)
    theirs = await client.acquire(boris, key("a"), ttl_s=60.0)
    waiting = asyncio.create_task(waits.wait_for_end(theirs, LONG_S))
    await client.complete(anna, mine, placed("a", ANNA))
    assert await waiting
    assert [p.replica for p in (await client.lookup([key("a")]))[key("a")]] == [ANNA]
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
