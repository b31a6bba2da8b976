"""Kill or pause members that hold a build, in processes of their own: a waiting member takes over, once."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cache_service.client.client import CacheClient
from cache_service.client.waits import BuildWaits
from cache_service.core.events import Built, Event, Granted, Released
from cache_service.core.mirror import Mirror
from cache_service.core.types import Build, Lease, PrefixKey, ReplicaId
from cache_service.testing.processes import RedisProcess, ServiceProcess
from tests.support.requirements import require_redis
from tests.support.waiting import until
from tests.unit.cache_service.builders import placed

BUILDER, WAITER = ReplicaId("builder"), ReplicaId("waiter")
TTL_S, LONG_S = 2.0, 60.0
KEYS = [PrefixKey(bytes([number]) * 20) for number in range(2)]


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.system)])
def targets(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Yield the service's targets for builder and waiter: two instances where the store can be shared."""
    with ExitStack() as stack:
        if request.param == "memory":
            service = stack.enter_context(ServiceProcess(tmp_path))
            yield service.target, service.target
            return
        require_redis()
        redis = stack.enter_context(RedisProcess(tmp_path))
        first, second = (stack.enter_context(ServiceProcess(tmp_path, "--store", redis.url)) for _ in range(2))
        yield first.target, second.target


@dataclass
class Waiter:
    """Acquires builds as a member that follows every event."""

    client: CacheClient
    lease: Lease
    mirror: Mirror = field(default_factory=Mirror)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.waits = BuildWaits(self.mirror)

    async def follow(self) -> None:
        async with aclosing(self.client.watch()) as watch:
            async for item in watch:
                self.waits.take(self.mirror.take(item))
                if isinstance(item, Event):
                    self.events.append(item)

    async def acquire(self, key: PrefixKey) -> Build:
        return await self.client.acquire(self.lease, key, LONG_S)

    async def events_until(self, key: PrefixKey, kind: type[Event]) -> list[tuple[type[Event], ReplicaId]]:
        """Return the events of the key's builds, in order, once one of this kind is among them."""

        def about() -> list[tuple[type[Event], ReplicaId]]:
            builds = (event for event in self.events if isinstance(event, Granted | Built | Released))
            return [(type(event), event.replica) for event in builds if event.build.key == key]

        await until(lambda: kind in dict(about()), LONG_S, lambda: f"no {kind.__name__}, only {about()}")
        return about()


@asynccontextmanager
async def waiter_at(target: str) -> AsyncIterator[Waiter]:
    async with CacheClient(target, timeout_s=10.0) as client:
        waiter = Waiter(client, await client.register(WAITER, LONG_S))
        following = asyncio.create_task(waiter.follow())
        try:
            yield waiter
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following


@asynccontextmanager
async def builder_at(target: str, key: PrefixKey) -> AsyncIterator[Process]:
    """Run a builder, and yield it once its build was granted."""
    command = [sys.executable, "-m", "tests.faults.builder", target, BUILDER, key.hex(), str(TTL_S)]
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
    try:
        assert await line_of(process) == "granted"
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def line_of(process: Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(LONG_S):
        return (await process.stdout.readline()).decode().strip()


async def test_a_waiting_member_takes_over_the_build_of_a_killed_process(targets: tuple[str, str]) -> None:
    async with waiter_at(targets[1]) as waiter:
        for key in KEYS:
            async with builder_at(targets[0], key) as builder:
                theirs = await waiter.acquire(key)
                assert theirs.replica == BUILDER
                assert not await waiter.waits.wait_for_end(theirs, 1.5 * TTL_S), (
                    "a build that gives signs of life has ended"
                )
                waiting = asyncio.create_task(waiter.waits.wait_for_end(theirs, LONG_S))
                await asyncio.sleep(0)
                builder.kill()

                assert await waiting
                mine = await waiter.acquire(key)
                assert mine.replica == WAITER
                assert mine.token > theirs.token
                await waiter.client.complete(waiter.lease, mine, placed("a", WAITER, key=key))
            assert await waiter.events_until(key, Built) == [
                (Granted, BUILDER),
                (Released, BUILDER),
                (Granted, WAITER),
                (Built, WAITER),
            ]


@pytest.mark.parametrize("is_taken_over", [True, False])
async def test_a_builder_that_slept_through_its_lease_is_fenced_off(
    targets: tuple[str, str], is_taken_over: bool
) -> None:
    [key, *_] = KEYS
    async with waiter_at(targets[1]) as waiter, builder_at(targets[0], key) as builder:
        theirs = await waiter.acquire(key)
        builder.send_signal(signal.SIGSTOP)
        assert await waiter.waits.wait_for_end(theirs, LONG_S)
        if is_taken_over:
            mine = await waiter.acquire(key)
            await waiter.client.complete(waiter.lease, mine, placed("a", WAITER, key=key))
        builder.send_signal(signal.SIGCONT)

        assert await line_of(builder) == "fenced"
        holders = [placement.replica for placement in (await waiter.client.lookup([key])).get(key, ())]
        assert holders == ([WAITER] if is_taken_over else [])
