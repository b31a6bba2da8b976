"""The reader of contexts against a real cache service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from unittest.mock import AsyncMock

import pytest

from cache_service.client.client import CacheClient
from cache_service.config import ServerConfig
from cache_service.core.mirror import Mirror
from cache_service.core.types import Context, Edit, ReplicaId
from cache_service.rpc.server import CacheServer
from cache_service.store.memory import MemoryStore
from cache_service.testing import FakeClock
from tests.support.waiting import until
from workers.api import ContextEpoch, ContextMode, ContextRead
from workers.coherence.context_reader import ContextReader
from workers.coherence.faults import TaskFaults
from workers.coherence.tally import Tally
from workers.coherence.view import ClusterView

ME = ReplicaId("me")


def server_on(port: int = 0) -> CacheServer:
    return CacheServer(ServerConfig(port=port, grace_s=0.0, tick_s=3600.0), MemoryStore(clock=FakeClock(), history=64))


def client_of(server: CacheServer) -> CacheClient:
    return CacheClient(f"127.0.0.1:{server.port}", timeout_s=10.0)


@pytest.fixture
async def client() -> AsyncIterator[CacheClient]:
    async with server_on() as server, client_of(server) as client:
        yield client


def reader_of(context: Context, max_staleness: int = 0) -> ContextRead:
    return ContextRead(ContextEpoch(context.id, context.epoch), 3, ContextMode.FOLLOW, max_staleness)


async def following(client: CacheClient, mirror: Mirror, reader: ContextReader) -> None:
    async for update in client.watch(with_content=False):
        mirror.take(update)
        reader.take(update)


async def test_without_a_budget_every_commit_is_seen_at_once_though_the_view_lags_behind(client: CacheClient) -> None:
    """The view stays as it was: the service's answer counts."""
    context = await client.create_context("f", "", [1, 2, 3], author=ME)
    mirror = Mirror()
    view = ClusterView(mirror)
    mirror.take(await anext(client.watch()))
    reader = ContextReader(client, view, TaskFaults(Tally()))
    assert await reader.newest(reader_of(context)) == context
    for number in range(40):
        await client.edit_context(context.id, context.epoch, [Edit(0, 1, (number,))], author=ME)
        context = await client.get_context(context.id)
        assert await reader.newest(reader_of(context)) == context


async def test_content_that_was_read_is_not_transferred_again(client: CacheClient) -> None:
    context = await client.create_context("f", "", [1, 2, 3], author=ME)
    mirror = Mirror()
    mirror.take(await anext(client.watch()))
    reader = ContextReader(client, ClusterView(mirror), TaskFaults(Tally()))
    first = await reader.newest(reader_of(context))
    assert first == context
    assert await reader.newest(reader_of(context)) is first


async def test_content_that_was_read_follows_the_edits_of_the_watch(client: CacheClient) -> None:
    context = await client.create_context("f", "", [1, 2, 3], author=ME)
    mirror = Mirror()
    reader = ContextReader(client, ClusterView(mirror), TaskFaults(Tally()))
    watching = asyncio.create_task(following(client, mirror, reader))
    await until(lambda: mirror.state.contexts.find(context.id))
    assert await reader.newest(reader_of(context)) == context
    await client.edit_context(context.id, context.epoch, [Edit(1, 2, (8, 9))], author=ME)
    await until(lambda: mirror.state.contexts.get(context.id).epoch == 1)
    client.get_context = AsyncMock(side_effect=LookupError)  # type: ignore[method-assign]
    known = await reader.newest(reader_of(context, 1))
    assert known is not None
    assert (known.epoch, known.token_ids) == (1, (1, 8, 9, 3))
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_the_view_holds_no_content(client: CacheClient) -> None:
    before = await client.create_context("f", "", [1, 2, 3], masked=[1], author=ME)
    mirror = Mirror()
    reader = ContextReader(client, ClusterView(mirror), TaskFaults(Tally()))
    watching = asyncio.create_task(following(client, mirror, reader))
    await until(lambda: mirror.state.contexts.find(before.id))
    later = await client.create_context("f", "", [4, 5], author=ME)
    version = await client.edit_context(before.id, before.epoch, [Edit(0, 1, (7,))], author=ME)
    await until(lambda: mirror.state.contexts.get(before.id).version == version)
    held = [(context.token_ids, context.masked) for context in mirror.state.contexts.all()]
    assert held == [((), ()), ((), ())]
    assert mirror.state.contexts.get(later.id).key == later.key
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_a_supply_catches_up_with_what_the_view_names(client: CacheClient) -> None:
    """The view learns of a newer epoch while the content of the one before is on its way."""
    replies: asyncio.Queue[Context | None] = asyncio.Queue()
    context = await client.create_context("f", "", [1, 2, 3], author=ME)
    mirror = Mirror()
    reader = ContextReader(client, ClusterView(mirror), TaskFaults(Tally()))
    old = await client.get_context(context.id)
    await client.edit_context(context.id, context.epoch, [Edit(0, 1, (9,))], author=ME)
    mirror.take(await anext(client.watch(with_content=False)))
    newest = await client.get_context(context.id)
    client.get_context = AsyncMock(side_effect=[old, newest])  # type: ignore[method-assign]
    reader.supply(context.id, replies.put_nowait)
    async with asyncio.timeout(10):
        assert await replies.get() == newest
    reader.supply(context.id, replies.put_nowait)
    assert replies.get_nowait() == newest


async def test_content_that_the_view_lacks_is_asked_for(client: CacheClient) -> None:
    context = await client.create_context("f", "", [1, 2, 3], author=ME)
    for max_staleness in (0, 1):
        assert (
            await ContextReader(client, ClusterView(Mirror()), TaskFaults(Tally())).newest(
                reader_of(context, max_staleness)
            )
            == context
        )


async def test_with_a_budget_the_watch_catches_up_and_serves_while_the_service_is_away() -> None:
    async with AsyncExitStack() as up:
        client = await up.enter_async_context(client_of(server := await up.enter_async_context(server_on())))
        async with client_of(server) as its_own:
            context = await client.create_context("f", "", [1, 2, 3], author=ME)
            mirror = Mirror()
            view = ClusterView(mirror)
            reader = ContextReader(its_own, view, TaskFaults(Tally()))
            watching = asyncio.create_task(following(its_own, mirror, reader))
            assert await reader.newest(reader_of(context, 1)) == context
            await client.edit_context(context.id, context.epoch, [Edit(0, 0, (9, 8))], author=ME)

            async def has_moved_on() -> bool:
                newest = await reader.newest(reader_of(context, 1))
                return newest is not None and newest.epoch > context.epoch

            await until(has_moved_on)
            known = await reader.newest(reader_of(context, 1))
            assert known is not None
            await up.aclose()

            assert await reader.newest(reader_of(context, 1)) == known
            assert known.token_ids == (9, 8, 1, 2, 3)
            assert await reader.newest(reader_of(context)) is None
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def test_a_deleted_context_has_no_newest_content(client: CacheClient) -> None:
    context = await client.create_context("f", "", [1, 2, 3], author=ME)
    mirror = Mirror()
    view = ClusterView(mirror)
    mirror.take(await anext(client.watch()))
    await client.delete_context(context.id, author=ME)
    assert await ContextReader(client, view, TaskFaults(Tally())).newest(reader_of(context)) is None


async def test_every_question_gets_a_reply_as_long_as_it_is_open() -> None:
    replies: asyncio.Queue[Context | None] = asyncio.Queue()
    async with AsyncExitStack() as up:
        server = await up.enter_async_context(server_on())
        async with client_of(server) as client:
            context = await client.create_context("f", "", [1, 2, 3], author=ME)
            reader = ContextReader(client, ClusterView(Mirror()), TaskFaults(Tally()))
            for _ in range(3):
                reader.ask(reader_of(context), replies.put_nowait)
            assert [await replies.get() for _ in range(3)] == [context] * 3
            await up.aclose()
            reader.ask(reader_of(context), replies.put_nowait)
            assert await replies.get() is None
            reader.ask(reader_of(context), replies.put_nowait)
            await reader.close()
            assert replies.empty()


async def test_a_question_that_fails_unexpectedly_is_answered_and_counted(client: CacheClient) -> None:
    context = await client.create_context("f", "", [1, 2, 3], author=ME)
    tally, replies = Tally(), asyncio.Queue[Context | None]()
    reader = ContextReader(client, ClusterView(Mirror()), TaskFaults(tally))
    whole, client.get_context = client.get_context, AsyncMock(side_effect=LookupError)  # type: ignore[method-assign]
    reader.ask(reader_of(context), replies.put_nowait)
    async with asyncio.timeout(10):
        assert await replies.get() is None
    client.get_context = whole  # type: ignore[method-assign]
    reader.ask(reader_of(context), replies.put_nowait)
    assert await replies.get() == context
    assert tally.task_errors == {"context": 1}
