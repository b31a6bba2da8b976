"""Claims of builds whose answer is lost: what the service granted is given back, and nothing else is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cache_service.client.client import CacheClient
from cache_service.config import ServerConfig
from cache_service.core.mirror import Mirror
from cache_service.core.types import FIRST_EPOCH, Build, DepthTable, Lease, PrefixKey, ReplicaId
from cache_service.errors import CacheServiceUnavailable
from cache_service.rpc.server import CacheServer
from cache_service.store.memory import MemoryStore
from cache_service.testing import FakeClock
from tests.support.waiting import until
from workers.coherence.claims import BuildClaims
from workers.coherence.inventory import Inventory
from workers.coherence.sync import PrefixSync
from workers.coherence.tally import Tally
from workers.coherence.view import ClusterView

US, OTHER = ReplicaId("us"), ReplicaId("other")
TABLE = DepthTable(0, 2)
KEY = PrefixKey(b"k" * 20)
LONG_S = 60.0


class DeafClient(CacheClient):
    """Carries claims out, and then loses the answers as a test says."""

    answer = "arrives"

    def __init__(self, target: str) -> None:
        super().__init__(target, timeout_s=LONG_S)
        self.granted = asyncio.Event()

    async def acquire(self, *args: Any, **kwargs: Any) -> Build:
        build = await super().acquire(*args, **kwargs)
        self.granted.set()
        if self.answer == "never arrives":
            await asyncio.Event().wait()
        if self.answer == "is too late":
            raise CacheServiceUnavailable("no answer within the timeout")
        return build


@pytest.fixture
async def server() -> AsyncIterator[CacheServer]:
    """Run a server whose leases never lapse."""
    store = MemoryStore(clock=FakeClock(), history=64)
    async with CacheServer(ServerConfig(port=0, grace_s=0.0, tick_s=3600.0), store) as server:
        yield server


class Claimant:
    def __init__(self, client: DeafClient) -> None:
        self.client, self.mirror, self.inventory = client, Mirror(), Inventory()
        view = ClusterView(self.mirror)
        self.sync = PrefixSync(client, US, LONG_S, view, self.inventory, TABLE, Tally())
        self.claims = BuildClaims(US, LONG_S, client=client, sync=self.sync, inventory=self.inventory, view=view)

    @property
    def lease(self) -> Lease:
        assert self.sync.lease is not None
        return self.sync.lease

    def known_builds(self) -> tuple[Build, ...]:
        return self.mirror.state.builds.all()

    async def watch(self) -> None:
        async for update in self.client.watch():
            self.mirror.take(update)
            self.claims.take(update)


@asynccontextmanager
async def claimant_at(server: CacheServer) -> AsyncIterator[Claimant]:
    async with DeafClient(f"127.0.0.1:{server.port}") as client:
        claimant = Claimant(client)
        tasks = [asyncio.create_task(claimant.sync.run()), asyncio.create_task(claimant.watch())]
        await claimant.sync.joined.wait()
        yield claimant
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await claimant.claims.close()


def builds_at(server: CacheServer) -> tuple[Build, ...]:
    return server.service.store.state.builds.all()


async def test_a_claim_that_was_cancelled_after_its_grant_is_given_back(server: CacheServer) -> None:
    async with claimant_at(server) as claimant:
        claimant.client.answer = "never arrives"
        claiming = asyncio.create_task(claimant.claims.claim(KEY))
        await claimant.client.granted.wait()
        await until(claimant.known_builds)
        assert builds_at(server), "a claim without its answer must not be given back yet"
        claiming.cancel()
        await until(lambda: not builds_at(server))


async def test_a_claim_that_was_cancelled_before_the_watch_brought_its_grant_is_given_back(
    server: CacheServer,
) -> None:
    async with claimant_at(server) as claimant:
        claimant.client.answer = "never arrives"
        claiming = asyncio.create_task(claimant.claims.claim(KEY))
        await claimant.client.granted.wait()
        claiming.cancel()
        await until(lambda: not builds_at(server))


async def test_a_claim_whose_answer_is_too_late_is_given_back(server: CacheServer) -> None:
    async with claimant_at(server) as claimant:
        claimant.client.answer = "is too late"
        assert await claimant.claims.claim(KEY) is None
        await until(lambda: not builds_at(server))


async def test_a_granted_claim_is_kept_until_it_is_given_up(server: CacheServer) -> None:
    async with claimant_at(server) as claimant:
        build = await claimant.claims.claim(KEY)
        await until(lambda: claimant.known_builds() == (build,))
        claimant.claims.take(claimant.mirror.state.snapshot())
        await claimant.client.keep_alive(claimant.lease)
        assert builds_at(server) == (build,)
        claimant.claims.give_up(KEY)
        await until(lambda: not builds_at(server))


async def test_a_new_claim_for_the_key_of_a_cancelled_one_gets_its_build(server: CacheServer) -> None:
    async with claimant_at(server) as claimant:
        claimant.client.answer = "never arrives"
        first = asyncio.create_task(claimant.claims.claim(KEY))
        await claimant.client.granted.wait()
        await until(claimant.known_builds)
        claimant.client.answer = "arrives"
        second = asyncio.create_task(claimant.claims.claim(KEY))
        await asyncio.sleep(0)
        first.cancel()
        build = await second
        await claimant.client.keep_alive(claimant.lease)
        assert builds_at(server) == (build,)


async def test_another_replicas_build_is_left_alone(server: CacheServer) -> None:
    async with claimant_at(server) as claimant, CacheClient(f"127.0.0.1:{server.port}") as other:
        build = await other.acquire(await other.register(OTHER, LONG_S), KEY, LONG_S)
        assert await claimant.claims.claim(KEY) == build
        await until(lambda: claimant.mirror.state.builds.get(KEY, FIRST_EPOCH) == build)
        await claimant.client.keep_alive(claimant.lease)
        assert builds_at(server) == (build,)
