"""Test contexts, builds, drift and fail-over through the real client, server and socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress

import grpc
import pytest

from cache_service.client.client import CacheClient
from cache_service.client.contact import WatchContact
from cache_service.config import ServerConfig
from cache_service.core.events import Announced, Built, Edited, Event
from cache_service.core.hashing import prefix_keys
from cache_service.core.types import (
    FIRST_EPOCH,
    ContextId,
    DepthLimit,
    DepthTable,
    Edit,
    EditId,
    Epoch,
    Lease,
    LeaseId,
    ReplicaId,
    Snapshot,
)
from cache_service.errors import (
    CacheServiceUnavailable,
    FencedToken,
    InvalidRequest,
    LeaseRefused,
    StaleEpoch,
    UnknownContext,
)
from cache_service.rpc.server import CacheServer
from cache_service.store.memory import MemoryStore
from cache_service.testing import FakeClock, free_port
from protos import cache_v1_pb2 as pb
from protos.cache_v1_pb2_grpc import ContextsStub, EventsServicer, add_EventsServicer_to_server
from tests.support.waiting import until
from tests.unit.cache_service.builders import ANNA, BORIS, key, placed


async def test_a_context_is_created_read_edited_and_deleted(client: CacheClient) -> None:
    made = await client.create_context("model", "salt", [1, 99, 99, 4], masked=[1, 2], author=ANNA)
    assert await client.get_context(made.id) == made
    version = await client.edit_context(made.id, FIRST_EPOCH, [Edit(1, 2, (7,))], author=ANNA)
    read = await client.get_context(made.id)
    assert (read.token_ids, read.masked, read.version) == ((1, 7, 99, 4), (2,), version)
    assert [version.key] == prefix_keys("model", "salt", [1, 7, 99, 4], [4])
    with pytest.raises(StaleEpoch, match="at epoch 1"):
        await client.edit_context(made.id, FIRST_EPOCH, [Edit(2, 3, (8,))], author=BORIS)
    await client.delete_context(made.id, author=ANNA)
    with pytest.raises(UnknownContext, match=made.id):
        await client.get_context(made.id)


async def test_known_content_is_not_sent_again(server: CacheServer, client: CacheClient) -> None:
    made = await client.create_context("m", "s", [1, 2, 3], masked=[1], author=ANNA)
    read = await client.get_context(made.id)
    assert await client.get_context(made.id, known=read) is read
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        request = pb.GetContextRequest(id=made.id, known_commit_id=read.version.edit_id)
        answer = await ContextsStub(channel).Get(request)  # type: ignore[no-untyped-call]
    assert (list(answer.context.token_ids), list(answer.context.masked)) == ([], [])

    await client.edit_context(made.id, FIRST_EPOCH, [Edit(0, 1, (7,))], author=ANNA)
    newest = await client.get_context(made.id, known=read)
    assert (newest.epoch, newest.token_ids, newest.masked) == (1, (7, 2, 3), (1,))
    await client.delete_context(made.id, author=ANNA)
    with pytest.raises(UnknownContext):
        await client.get_context(made.id, known=newest)


async def test_requests_with_the_same_edit_id_are_carried_out_once(client: CacheClient) -> None:
    first = await client.create_context("m", "s", [1], author=ANNA, edit_id=EditId("make"))
    assert await client.create_context("m", "s", [1], author=ANNA, edit_id=EditId("make")) == first
    edits = [Edit(0, 1, (2,))]
    version = await client.edit_context(first.id, FIRST_EPOCH, edits, author=ANNA, edit_id=EditId("edit"))
    assert await client.edit_context(first.id, FIRST_EPOCH, edits, author=ANNA, edit_id=EditId("edit")) == version


async def test_contexts_are_listed_by_pages_without_their_tokens(client: CacheClient) -> None:
    made = [await client.create_context("m", "s", [i], author=ANNA) for i in range(5)]
    await client.create_context("m", "another tenant's", [9], author=ANNA)
    page = await client.list_contexts("s", page_size=2)
    listed = list(page.contexts)
    while page.next_page_token is not None:
        page = await client.list_contexts("s", page_size=2, page_token=page.next_page_token)
        listed += page.contexts
    assert [context.id for context in listed] == [context.id for context in made]
    assert {context.token_ids for context in listed} == {()}


@pytest.mark.parametrize(("size", "token"), [(1001, None), (1, "elsewhere"), (1, "9" * 5000)])
async def test_invalid_pages_are_refused(client: CacheClient, size: int, token: str | None) -> None:
    with pytest.raises(InvalidRequest, match="page_"):
        await client.list_contexts("s", page_size=size, page_token=token)


async def test_a_refusal_arrives_even_where_it_repeats_a_long_name(client: CacheClient) -> None:
    with pytest.raises(UnknownContext, match="there is no context 'xxx"):
        await client.get_context(ContextId("x" * 100_000))
    with pytest.raises(LeaseRefused, match="replica 'ééé"):
        await client.drain(Lease(LeaseId(1), ReplicaId("é" * 100_000), 1.0))


async def test_watchers_see_an_edit_and_it_hides_old_entries(client: CacheClient) -> None:
    lease = await client.register(ANNA, ttl_s=5.0)
    made = await client.create_context("m", "s", [1, 2], author=ANNA)
    entry = placed("", ANNA, key=made.key, context=made.id, heat=3)
    await client.announce(lease, [entry])
    async with aclosing(client.watch()) as watch:
        snapshot = await anext(watch)
        assert isinstance(snapshot, Snapshot)
        assert snapshot.contexts == (made,)
        version = await client.edit_context(made.id, FIRST_EPOCH, [Edit(0, 1, (5,))], author=BORIS)
        event = await anext(watch)
    assert isinstance(event, Edited)
    assert (event.author, event.version) == (BORIS, version)
    assert await client.lookup([made.key]) == {}
    assert await client.lookup([made.key], max_staleness=1) == {made.key: (entry,)}
    assert await client.hottest(9) == ()
    with pytest.raises(InvalidRequest, match="max_staleness"):
        await client.lookup([made.key], max_staleness=5)


async def test_one_member_builds_and_watchers_see_it(client: CacheClient) -> None:
    anna, boris = await client.register(ANNA, ttl_s=5.0), await client.register(BORIS, ttl_s=5.0)
    build = await client.acquire(anna, key("a"), ttl_s=1.0)
    async with aclosing(client.watch()) as watch:
        snapshot = await anext(watch)
        assert isinstance(snapshot, Snapshot)
        assert snapshot.builds == (build,)
        assert await client.acquire(boris, key("a"), ttl_s=1.0) == build
        await client.extend(anna, build)
        await client.complete(anna, build, placed("a", ANNA))
        kinds = [type(item) for item in [await anext(watch), await anext(watch)] if isinstance(item, Event)]
    assert kinds == [Announced, Built]
    with pytest.raises(FencedToken):
        await client.extend(anna, build)
    mine = await client.acquire(boris, key("a"), ttl_s=1.0)
    assert mine.replica == BORIS
    await client.release(boris, mine)


async def test_a_build_whose_holder_fell_silent_is_granted_again(
    server: CacheServer, client: CacheClient, clock: FakeClock
) -> None:
    anna, boris = await client.register(ANNA, ttl_s=60.0), await client.register(BORIS, ttl_s=60.0)
    old = await client.acquire(anna, key("a"), ttl_s=1.0)
    clock.advance(0.6)
    await client.extend(anna, old)
    clock.advance(0.6)
    await server.service.tick()
    assert await client.acquire(boris, key("a"), ttl_s=1.0) == old
    clock.advance(0.6)
    await server.service.tick()
    new = await client.acquire(boris, key("a"), ttl_s=1.0)
    assert new.token > old.token
    with pytest.raises(FencedToken, match="'boris'"):
        await client.complete(anna, old, placed("a", ANNA))


async def test_acquiring_ones_own_build_again_renews_its_lease(
    server: CacheServer, client: CacheClient, clock: FakeClock
) -> None:
    anna = await client.register(ANNA, ttl_s=60.0)
    build = await client.acquire(anna, key("a"), ttl_s=1.0)
    clock.advance(0.9)
    assert await client.acquire(anna, key("a"), ttl_s=1.0) == build
    clock.advance(0.9)
    await server.service.tick()
    await client.extend(anna, build)
    clock.advance(1.1)  # lapsed, and no tick has ended it yet
    assert (await client.acquire(anna, key("a"), ttl_s=1.0)).token > build.token


async def test_reported_drift_lowers_depths_for_all_members(client: CacheClient) -> None:
    lease = await client.register(ANNA, ttl_s=5.0, depth_table=DepthTable(1, 8))
    await client.announce(lease, [placed("a", ANNA)])
    limit = DepthLimit(key("a"), bucket=60, depth=3, depth_table_version=1)
    revision = await client.report_drift(lease, [limit])
    assert await client.report_drift(lease, [DepthLimit(key("a"), 60, 7, 1)]) == revision
    assert await client.depth_limits([key("a"), key("b"), key("a")]) == (limit,)
    await client.withdraw(lease, [key("a")])
    assert await client.depth_limits([key("a")]) == ()


async def test_a_draining_member_stays_listed_and_is_marked_as_draining(client: CacheClient) -> None:
    lease = await client.register(ANNA, ttl_s=5.0)
    await client.announce(lease, [placed("a", ANNA)])
    revision = await client.drain(lease)
    assert await client.drain(lease) == revision
    assert key("a") in await client.lookup([key("a")])
    async with aclosing(client.watch()) as watch:
        snapshot = await anext(watch)
    assert isinstance(snapshot, Snapshot)
    assert snapshot.draining == (ANNA,)


async def test_the_hottest_prefixes_come_first(client: CacheClient) -> None:
    anna, boris = await client.register(ANNA, ttl_s=5.0), await client.register(BORIS, ttl_s=5.0)
    await client.announce(anna, [placed(name, ANNA, heat=heat) for name, heat in [("a", 2), ("b", 9), ("c", 5)]])
    await client.announce(boris, [placed("a", BORIS, heat=7)])
    hottest = await client.hottest(2)
    assert [(p.key, p.replica, p.heat) for p in hottest] == [(key("b"), ANNA, 9), (key("a"), BORIS, 7)]


async def test_a_stale_entry_is_not_among_the_hottest(client: CacheClient) -> None:
    lease = await client.register(ANNA, ttl_s=5.0)
    made = await client.create_context("m", "s", [1], author=ANNA)
    old = placed("", ANNA, key=made.key, context=made.id, heat=99)
    await client.announce(lease, [old, placed("a", ANNA, heat=2)])
    await client.edit_context(made.id, FIRST_EPOCH, [Edit(0, 1, (2,))], author=ANNA)
    assert await client.hottest(1) == (placed("a", ANNA, heat=2),)


async def test_a_watch_leaves_a_silent_instance(server: CacheServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network can reach the instance, as one that is stopped or that hangs."""
    monkeypatch.setattr("cache_service.client.watch.MAX_SILENCE_S", 0.2)
    async with (
        watchable(HangingEvents()) as target,
        CacheClient(f"{target},127.0.0.1:{server.port}") as client,
        aclosing(client.watch()) as watch,
        asyncio.timeout(10),
    ):
        assert isinstance(await anext(watch), Snapshot)


async def test_a_watcher_takes_a_snapshot_in_place_of_an_event_that_it_does_not_know() -> None:
    """An instance that is newer than the watcher sends such an event."""
    async with (
        watchable(NewerEvents()) as target,
        CacheClient(target) as client,
        aclosing(client.watch()) as watch,
        asyncio.timeout(10),
    ):
        assert [(await anext(watch)).revision for _ in range(3)] == [1, 3, 5]


@asynccontextmanager
async def watchable(events: EventsServicer) -> AsyncIterator[str]:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    add_EventsServicer_to_server(events, server)  # type: ignore[no-untyped-call]
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


class HangingEvents(EventsServicer):
    async def Watch(self, request: pb.WatchRequest, context: object) -> None:  # noqa: N802
        await asyncio.Event().wait()


class NewerEvents(EventsServicer):
    """Sends a snapshot, then an event of a kind that this version doesn't know."""

    revision = -1

    async def Watch(self, request: pb.WatchRequest, context: object) -> AsyncIterator[pb.WatchResponse]:  # noqa: N802
        assert not request.HasField("after_revision")
        self.revision += 2
        header = pb.Header(incarnation="newer", revision=self.revision)
        yield pb.WatchResponse(header=header, snapshot=pb.SnapshotPart(last=True))
        event = pb.Event(revision=self.revision + 1, kind=99)  # type: ignore[arg-type]
        yield pb.WatchResponse(header=header, events=pb.EventBatch(events=[event]))


async def test_a_client_fails_over_to_the_next_instance(clock: FakeClock) -> None:
    store = MemoryStore(clock=clock)
    async with CacheServer(ServerConfig(port=0, grace_s=0.0), store) as server:
        away, here = f"127.0.0.1:{free_port()}", f"127.0.0.1:{server.port}"
        async with CacheClient(f"{away}, {here}", timeout_s=10.0) as client, aclosing(client.watch()) as watch:
            assert isinstance(await anext(watch), Snapshot)
            lease = await client.register(ANNA, ttl_s=5.0)
            assert await client.announce(lease, [placed("a", ANNA)]) == 2


async def test_a_client_without_any_instance_fails_in_time() -> None:
    async with CacheClient(f"127.0.0.1:{free_port()},127.0.0.1:{free_port()}", timeout_s=5.0) as client:
        with pytest.raises(CacheServiceUnavailable):
            await client.get_context(ContextId("ctx-1"))


def test_a_client_needs_a_target() -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        CacheClient(" , ")


async def test_an_epoch_of_the_future_is_as_stale_as_one_of_the_past(client: CacheClient) -> None:
    made = await client.create_context("m", "s", [1], author=ANNA)
    with pytest.raises(StaleEpoch):
        await client.edit_context(made.id, Epoch(3), [Edit(0, 1, (2,))], author=ANNA)


async def test_a_client_knows_whether_its_watch_hears_the_service() -> None:
    contact = WatchContact(FakeClock())  # by this clock the service is never silent
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(AsyncExitStack())
        server = CacheServer(ServerConfig(port=0, grace_s=0.0), MemoryStore(clock=FakeClock(), history=64))
        port = (await running.enter_async_context(server)).port
        client = await stack.enter_async_context(CacheClient(f"127.0.0.1:{port}", contact=contact))
        watch = await stack.enter_async_context(aclosing(client.watch()))
        await anext(watch)
        assert (contact.is_reachable, contact.reason) == (True, None)

        reading = asyncio.ensure_future(anext(watch))
        await running.aclose()
        await until(lambda: not contact.is_reachable)
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
    assert "has not been heard" in str(contact.reason)
