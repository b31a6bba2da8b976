"""The reconciliation with a real cache service, with outages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Literal

import pytest

from cache_service.client.client import CacheClient
from cache_service.config import ServerConfig
from cache_service.core.events import Announced
from cache_service.core.mirror import Mirror
from cache_service.core.types import (
    Context,
    ContextId,
    DepthLimit,
    DepthTable,
    EditId,
    Epoch,
    Lease,
    Placement,
    PrefixKey,
    ReplicaId,
    Revision,
    Snapshot,
    Version,
)
from cache_service.errors import CacheServiceUnavailable
from cache_service.rpc.server import CacheServer
from cache_service.store.memory import MemoryStore
from cache_service.testing import FakeClock, free_port
from tests.support import waiting
from workers.bicache.entry_report import EntryReport, LiveEntry
from workers.coherence.inventory import Inventory
from workers.coherence.sync import PrefixSync
from workers.coherence.tally import Tally
from workers.coherence.view import ClusterView

REPLICA = ReplicaId("worker#1")
TTL_S, LONG_S = 0.6, 60.0
TABLE = DepthTable(0, 2)
KEYS = [PrefixKey(b"a" * 20), PrefixKey(b"b" * 20)]


def server_on(port: int) -> CacheServer:
    """Return a server whose leases go by a clock that stands still."""
    return CacheServer(ServerConfig(port=port, grace_s=0.0, tick_s=3600.0), MemoryStore(clock=FakeClock(), history=64))


def entries() -> tuple[LiveEntry, LiveEntry]:
    def live(key: PrefixKey, num_tokens: int) -> LiveEntry:
        return LiveEntry(key, num_tokens, frozenset({2}), 2, 1000, heat=0, drifted=(), build_s=0.1)

    return live(KEYS[0], 5), live(KEYS[1], 9)


@pytest.fixture
async def port() -> int:
    return free_port()


@pytest.fixture
async def client(port: int) -> AsyncIterator[CacheClient]:
    async with CacheClient(f"127.0.0.1:{port}", timeout_s=5.0) as client:
        yield client


async def until(view: Callable[[], Awaitable[object]], expected: object) -> None:
    async def is_seen() -> bool:
        return await view() == expected

    await waiting.until(is_seen, reason=lambda: f"the service lists {expected}")


def held(client: CacheClient) -> Callable[[], Awaitable[Sequence[int]]]:
    """Return the token counts of the entries that the service knows."""

    async def view() -> Sequence[int]:
        try:
            found = await client.lookup(KEYS)
        except CacheServiceUnavailable:  # the test's own connection is still finding the new server
            return []
        placements: list[Placement] = [placement for key in KEYS for placement in found.get(key, ())]
        assert all(placement.replica == REPLICA for placement in placements)
        return [placement.num_tokens for placement in placements]

    return view


class WatchedEvent(asyncio.Event):
    """Says when something waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.is_awaited = asyncio.Event()

    async def wait(self) -> Literal[True]:
        self.is_awaited.set()
        return await super().wait()


@asynccontextmanager
async def syncing(
    client: CacheClient, view: ClusterView | None = None, inventory: Inventory | None = None
) -> AsyncIterator[PrefixSync]:
    sync = PrefixSync(client, REPLICA, TTL_S, view or ClusterView(Mirror()), inventory or Inventory(), TABLE, Tally())
    running = asyncio.create_task(sync.run())
    yield sync
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await sync.leave()


async def test_entries_are_announced_and_withdrawn_and_leave_with_their_replica(port: int, client: CacheClient) -> None:
    first, second = entries()
    async with server_on(port), syncing(client) as sync:
        sync.apply(EntryReport(live=(first, second)))
        await until(held(client), [5, 9])
        sync.apply(EntryReport(gone=(first.key,)))
        await until(held(client), [9])
        await sync.leave()
        assert await held(client)() == []


async def test_it_can_be_cancelled_right_after_it_was_woken(port: int, client: CacheClient) -> None:
    async with server_on(port):
        sync = PrefixSync(client, REPLICA, LONG_S, ClusterView(Mirror()), Inventory(), TABLE, Tally())
        sync._wake = wake = WatchedEvent()
        running = asyncio.create_task(sync.run())
        await wake.is_awaited.wait()  # it has pushed all changes
        sync.wake()
        await asyncio.sleep(0)
        running.cancel()
        done, _ = await asyncio.wait([running], timeout=1.0)
        assert running in done


async def test_entries_are_announced_again_to_a_service_that_forgot_them(port: int, client: CacheClient) -> None:
    async with CacheClient(f"127.0.0.1:{port}") as own, syncing(own) as sync:
        sync.apply(EntryReport(live=entries()))  # no server is up yet
        for _ in range(2):
            async with server_on(port):
                await until(held(client), [5, 9])


async def test_an_entry_built_under_a_lost_lease_is_announced_without_its_token(port: int, client: CacheClient) -> None:
    first, _ = entries()
    inventory = Inventory()
    async with server_on(port), syncing(client, inventory=inventory) as sync:
        await sync.joined.wait()
        assert sync.lease is not None
        build = await client.acquire(sync.lease, first.key, 60.0)
        inventory.add_build(build)
        await client.release(sync.lease, build)
        sync.apply(EntryReport(live=(first,)))
        await until(held(client), [5])
        [placement] = (await client.lookup([first.key]))[first.key]
        assert placement.token is None


async def test_an_entry_built_under_a_live_lease_carries_its_token(port: int, client: CacheClient) -> None:
    first, _ = entries()
    inventory = Inventory()
    async with server_on(port), syncing(client, inventory=inventory) as sync:
        await sync.joined.wait()
        assert sync.lease is not None
        build = await client.acquire(sync.lease, first.key, 60.0)
        inventory.add_build(build)
        sync.apply(EntryReport(live=(first,)))
        await until(held(client), [5])
        [placement] = (await client.lookup([first.key]))[first.key]
        assert placement.token == build.token


async def test_drift_is_reported_once_for_each_announcement(port: int, client: CacheClient) -> None:
    first, second = entries()
    async with server_on(port), syncing(client) as sync:
        sync.apply(EntryReport(live=(replace(first, drifted=((60, 1),)), second)))
        await until(held(client), [5, 9])
        limit = DepthLimit(first.key, 60, 1, 0)
        assert await client.depth_limits(KEYS) == (limit,)
        sync.apply(EntryReport(gone=(first.key,)))
        await until(held(client), [9])
        assert await client.depth_limits(KEYS) == ()
        sync.apply(EntryReport(live=(replace(first, drifted=((60, 1),)),)))
        await until(held(client), [5, 9])
        await until(lambda: client.depth_limits(KEYS), (limit,))


async def test_a_report_that_is_refused_holds_up_no_other(port: int, client: CacheClient) -> None:
    first, second = entries()
    async with server_on(port), syncing(client) as sync:
        sync.apply(EntryReport(live=(replace(first, drifted=((50, 7), (60, 1))), second)))  # of a model of two layers
        limit = DepthLimit(first.key, 60, 1, 0)
        await until(lambda: client.depth_limits(KEYS), (limit,))
        assert sync._inventory.unreported({limit, DepthLimit(first.key, 50, 7, 0)}) == set()


async def test_an_entry_of_a_context_that_is_gone_is_not_announced_and_holds_up_no_other(
    port: int, client: CacheClient
) -> None:
    first, second = entries()
    version = Version(Epoch(3), first.key, EditId("x"))
    nowhere = Context(ContextId("ctx-1"), "f", "", (1,), (), Revision(1), EditId("x"), version)
    behind = Mirror()
    behind.take(Snapshot(Revision(1), (), (), contexts=(nowhere,)))
    async with server_on(port), syncing(client, ClusterView(behind)) as sync:
        sync.apply(EntryReport(live=(first, second)))
        await until(held(client), [9])


class DeafClient(CacheClient):
    """Carries out the calls whose names are in `unanswered`, and loses the first answer to each."""

    def __init__(self, port: int, *unanswered: str) -> None:
        super().__init__(f"127.0.0.1:{port}", timeout_s=5.0)
        self.unanswered = list(unanswered)

    def _lose(self, name: str) -> None:
        if name in self.unanswered:
            self.unanswered.remove(name)
            raise CacheServiceUnavailable("no answer within the timeout")

    async def announce(self, lease: Lease, placements: Sequence[Placement]) -> Revision:
        revision = await super().announce(lease, placements)
        self._lose("announce")
        return revision

    async def withdraw(self, lease: Lease, keys: Sequence[PrefixKey]) -> Revision:
        revision = await super().withdraw(lease, keys)
        self._lose("withdraw")
        return revision


@asynccontextmanager
async def reconciled(client: CacheClient) -> AsyncIterator[PrefixSync]:
    """Offer a sync whose rounds a test calls itself."""
    sync = PrefixSync(client, REPLICA, LONG_S, ClusterView(Mirror()), Inventory(), TABLE, Tally())
    yield sync
    await sync.leave()


async def test_an_entry_whose_announcement_got_no_answer_is_withdrawn_once_it_is_gone(
    port: int, client: CacheClient
) -> None:
    first, _ = entries()
    async with server_on(port), DeafClient(port, "announce") as own, reconciled(own) as sync:
        sync.apply(EntryReport(live=(first,)))
        with pytest.raises(CacheServiceUnavailable):
            await sync._reconcile()
        assert await held(client)() == [5]
        sync.apply(EntryReport(gone=(first.key,)))
        await sync._reconcile()
        assert await held(client)() == []


async def test_an_entry_whose_withdrawal_got_no_answer_is_announced_once_it_is_back(
    port: int, client: CacheClient
) -> None:
    first, _ = entries()
    async with server_on(port), DeafClient(port, "withdraw") as own, reconciled(own) as sync:
        sync.apply(EntryReport(live=(first,)))
        await sync._reconcile()
        sync.apply(EntryReport(gone=(first.key,)))
        with pytest.raises(CacheServiceUnavailable):
            await sync._reconcile()
        assert await held(client)() == []
        sync.apply(EntryReport(live=(first,)))
        await sync._reconcile()
        assert await held(client)() == [5]


async def test_a_late_copy_of_an_announcement_is_withdrawn_when_the_watch_brings_it(
    port: int, client: CacheClient
) -> None:
    first, second = entries()
    async with server_on(port), reconciled(client) as sync:
        sync.apply(EntryReport(live=(first,)))
        await sync._reconcile()
        assert sync.lease is not None
        for entry in (first, second):
            placement = sync._placement(entry)
            await client.announce(sync.lease, [placement])
            sync.take(Announced(Revision(9), placement))
        await sync._reconcile()
        assert await held(client)() == [5]


class SlowClient(CacheClient):
    """Holds back the answer to a registration until a test lets it go."""

    def __init__(self, port: int) -> None:
        super().__init__(f"127.0.0.1:{port}", timeout_s=5.0)
        self.is_registered, self.may_answer = asyncio.Event(), asyncio.Event()

    async def register(self, replica: ReplicaId, ttl_s: float, *, depth_table: DepthTable | None = None) -> Lease:
        lease = await super().register(replica, ttl_s, depth_table=depth_table)
        self.is_registered.set()
        await self.may_answer.wait()
        return lease


async def test_a_registration_that_was_cancelled_is_ended_by_leaving(port: int) -> None:
    async with server_on(port) as server, SlowClient(port) as own:
        sync = PrefixSync(own, REPLICA, LONG_S, ClusterView(Mirror()), Inventory(), TABLE, Tally())
        running = asyncio.create_task(sync.run())
        await own.is_registered.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        own.may_answer.set()
        await sync.leave()
        assert server.service.store.state.directory.members() == ()
