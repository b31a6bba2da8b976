"""Test the real server and the real client over a real socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any
from unittest.mock import AsyncMock

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cache_service.client.client import CacheClient
from cache_service.config import ServerConfig
from cache_service.core.events import Announced, Event, Joined, Left, Released, Withdrawn
from cache_service.core.mirror import Mirror
from cache_service.core.state import State
from cache_service.core.types import Lease, LeaseId, Revision, Snapshot
from cache_service.errors import CacheServiceUnavailable, InvalidRequest, LeaseRefused
from cache_service.rpc.server import CacheServer
from cache_service.store.base import Decision
from cache_service.store.memory import MemoryStore
from cache_service.testing import FakeClock, free_port
from protos import cache_v1_pb2 as pb
from protos import cache_v1_pb2_grpc as pb_grpc
from tests.unit.cache_service.builders import ANNA, BORIS, key, placed


def events_stub(channel: grpc.aio.Channel) -> Any:
    return pb_grpc.EventsStub(channel)  # type: ignore[no-untyped-call]


async def take(items: AsyncIterator[Snapshot | Event], count: int) -> list[Snapshot | Event]:
    return [await anext(items) for _ in range(count)]


async def test_an_announced_entry_is_found_until_it_is_withdrawn(client: CacheClient) -> None:
    lease = await client.register(ANNA, ttl_s=5.0)
    assert await client.announce(lease, [placed("a", ANNA), placed("b", ANNA, depth=0)]) == 3
    found = await client.lookup([key("a"), key("b"), key("c")])
    assert found == {key("a"): (placed("a", ANNA),), key("b"): (placed("b", ANNA, depth=0),)}
    assert await client.withdraw(lease, [key("a"), key("c")]) == 4
    assert await client.lookup([key("a")]) == {}
    assert await client.leave(lease) == 5
    assert await client.lookup([key("b")]) == {}


async def test_a_silent_member_leaves_with_all_it_holds(
    server: CacheServer, client: CacheClient, clock: FakeClock
) -> None:
    lease = await client.register(ANNA, ttl_s=5.0)
    await client.announce(lease, [placed("a", ANNA)])
    clock.advance(4.9)
    assert await client.keep_alive(lease) == lease
    clock.advance(4.9)
    await server.service.tick()
    assert key("a") in await client.lookup([key("a")])
    clock.advance(0.1)
    with pytest.raises(LeaseRefused, match="lapsed"):
        await client.keep_alive(lease)
    await server.service.tick()
    assert await client.lookup([key("a")]) == {}
    with pytest.raises(LeaseRefused, match="not a member"):
        await client.announce(lease, [placed("a", ANNA)])


async def test_lapsed_leases_end_one_by_one(
    server: CacheServer, client: CacheClient, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together they can have a million placements, and no other call is served meanwhile."""
    for replica in (ANNA, BORIS):
        lease = await client.register(replica, ttl_s=5.0)
        await client.acquire(lease, key(replica), ttl_s=5.0)
    clock.advance(5.0)
    ended: list[list[type[Event]]] = []
    whole = MemoryStore.append

    async def append(store: MemoryStore, decide: Decision) -> Sequence[Event]:
        events = await whole(store, decide)
        ended.append([type(event) for event in events])
        return events

    monkeypatch.setattr(MemoryStore, "append", append)
    await server.service.tick()
    assert [kinds for kinds in ended if kinds] == [[Released, Left]] * 2


async def test_a_refusal_arrives_as_the_error_that_the_service_raised(client: CacheClient) -> None:
    with pytest.raises(LeaseRefused, match="'anna' is not a member"):
        await client.announce(Lease(LeaseId(7), ANNA, 1.0), [placed("a", ANNA)])
    with pytest.raises(InvalidRequest, match="ttl_s"):
        await client.register(ANNA, ttl_s=-1.0)


async def test_a_watch_begins_with_a_snapshot_and_goes_on_with_every_event(client: CacheClient) -> None:
    lease = await client.register(ANNA, ttl_s=5.0)
    await client.announce(lease, [placed("a", ANNA)])
    async with aclosing(client.watch()) as watch:
        assert await anext(watch) == Snapshot(Revision(2), (ANNA,), (placed("a", ANNA),))
        await client.announce(lease, [placed("b", ANNA)])
        await client.withdraw(lease, [key("a")])
        await client.leave(lease)
        assert await take(watch, 3) == [
            Announced(Revision(3), placed("b", ANNA)),
            Withdrawn(Revision(4), placed("a", ANNA)),
            Left(Revision(5), ANNA),
        ]


async def test_watchers_at_the_same_revision_share_one_message(server: CacheServer, client: CacheClient) -> None:
    lease = await client.register(ANNA, ttl_s=5.0)
    service = server.service
    revision, incarnation = service.store.state.revision, service.store.incarnation
    watches = [service.watch(after, incarnation) for after in (revision, revision, Revision(0))]
    await client.announce(lease, [placed("a", ANNA)])
    one, other, behind = [await anext(watch) for watch in watches]
    assert one is other
    assert [event.revision for event in one.events] == [2]
    assert [event.revision for event in behind.events] == [1, 2]
    await client.announce(lease, [placed("b", ANNA)])
    one, other, behind = [await anext(watch) for watch in watches]
    assert one is other
    assert [event.revision for event in behind.events] == [3]


async def test_a_large_snapshot_comes_in_parts(client: CacheClient) -> None:
    lease = await client.register(ANNA, ttl_s=5.0)
    placements = [placed(f"{i}", ANNA) for i in range(10_000)]
    for start in range(0, 10_000, 2_500):
        await client.announce(lease, placements[start : start + 2_500])
    async with aclosing(client.watch()) as watch:
        snapshot = await anext(watch)
    assert isinstance(snapshot, Snapshot)
    assert set(snapshot.placements) == set(placements)


async def test_a_watch_resumes_over_a_restart_of_the_connection_without_loss(server: CacheServer) -> None:
    target = f"127.0.0.1:{server.port}"
    async with CacheClient(target) as writer, grpc.aio.insecure_channel(target) as channel:
        lease = await writer.register(ANNA, ttl_s=5.0)
        incarnation = server.service.store.incarnation
        await writer.announce(lease, [placed("a", ANNA), placed("b", ANNA)])
        watch = events_stub(channel).Watch(pb.WatchRequest(after_revision=2, incarnation=incarnation))
        response = await watch.read()
        assert [event.revision for event in response.events.events] == [3]


@pytest.mark.parametrize(
    ("after", "incarnation"), [(0, "current"), (999, "current"), (100, "of another life"), (100, "")]
)
async def test_a_watch_that_history_cannot_continue_is_refused(
    server: CacheServer, client: CacheClient, after: int, incarnation: str
) -> None:
    lease = await client.register(ANNA, ttl_s=5.0)
    await client.announce(lease, [placed(f"{i}", ANNA) for i in range(100)])
    if incarnation == "current":
        incarnation = server.service.store.incarnation
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        watch = events_stub(channel).Watch(pb.WatchRequest(after_revision=after, incarnation=incarnation))
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await watch.read()
    assert refusal.value.code() is grpc.StatusCode.OUT_OF_RANGE
    assert server.service.metrics.registry.get_sample_value("palimpsest_cache_resyncs_total") == 1


async def test_a_watch_outlives_the_service_and_gets_a_snapshot_of_its_successor(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with CacheServer(ServerConfig(port=0, grace_s=0.0), MemoryStore(clock=clock)) as first:
        client = CacheClient(f"127.0.0.1:{first.port}", timeout_s=10.0)
        watch = client.watch()
        assert await anext(watch) == Snapshot(Revision(0), (), ())
    pending = asyncio.ensure_future(anext(watch))
    with pytest.raises(CacheServiceUnavailable):
        await client.lookup([key("a")])
    async with CacheServer(ServerConfig(port=first.port, grace_s=0.0), MemoryStore(clock=clock)):
        assert await pending == Snapshot(Revision(0), (), ())
        lease = await client.register(BORIS, ttl_s=5.0)
        joined = Joined(Revision(1), lease)
        assert await anext(watch) == joined
        await watch.aclose()
        await client.close()
    assert len([r for r in caplog.records if "interrupted" in r.message]) <= 2


async def test_many_writers_and_late_watchers_end_with_one_view(server: CacheServer, client: CacheClient) -> None:
    async def write(name: str) -> None:
        lease = await client.register(ANNA if name == "x" else BORIS, ttl_s=5.0)
        for i in range(40):
            await client.announce(lease, [placed(f"{name}{i}", lease.replica)])
            if i % 3 == 0:
                await client.withdraw(lease, [key(f"{name}{i}")])

    async def follow(until: Revision) -> State:
        mirror = Mirror()
        async with aclosing(client.watch()) as watch:
            async for item in watch:
                mirror.take(item)
                if mirror.revision >= until:
                    break
        return mirror.state

    last = Revision(2 + 2 * 40 + 2 * 14)
    followers = [asyncio.create_task(follow(last)) for _ in range(4)]
    await asyncio.gather(write("x"), write("y"))
    want = server.service.store.state
    assert want.revision == last
    for view in await asyncio.gather(*followers, follow(last)):
        assert set(view.directory.placements()) == set(want.directory.placements())


async def test_an_instance_listens_at_an_ipv6_address(clock: FakeClock) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no ::1")
    config = ServerConfig(host="::1", port=0, grace_s=0.0)
    async with CacheServer(config, MemoryStore(clock=clock)) as server, CacheClient(f"[::1]:{server.port}") as client:
        assert (await client.register(ANNA, ttl_s=5.0)).replica == ANNA


async def test_ticks_go_on_after_one_that_fails_unexpectedly(clock: FakeClock) -> None:
    store = MemoryStore(clock=clock)
    lapsed, store.lapsed = store.lapsed, AsyncMock(side_effect=LookupError)  # type: ignore[method-assign]
    config = ServerConfig(port=0, grace_s=0.0, tick_s=0.01)
    async with CacheServer(config, store) as server, grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        statuses = health.Watch(health_pb2.HealthCheckRequest())
        assert (await statuses.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        store.lapsed = lapsed  # type: ignore[method-assign]
        async with asyncio.timeout(10):
            assert (await statuses.read()).status == health_pb2.HealthCheckResponse.SERVING


async def test_a_task_that_has_ended_for_good_ends_the_health_with_a_reason(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    config = ServerConfig(port=0, grace_s=0.0, tick_s=3600.0)
    async with (
        CacheServer(config, MemoryStore(clock=clock)) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        asyncio.timeout(10),
    ):
        statuses = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await statuses.read()).status == health_pb2.HealthCheckResponse.SERVING
        server.tasks.start("the rehearsal", asyncio.Event().wait).cancel()  # type: ignore[arg-type]
        assert (await statuses.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await server._tick()
        assert server._status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert "not serving: the rehearsal has ended (it was cancelled)" in caplog.text


async def test_a_task_that_fails_begins_again_and_is_counted(
    server: CacheServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache_service.background.RESTART_S", 0.0)
    is_running, failures = asyncio.Event(), [LookupError()]

    async def run() -> None:
        if failures:
            raise failures.pop()
        is_running.set()
        await asyncio.Event().wait()

    server.tasks.start("the rehearsal", run)
    async with asyncio.timeout(10):
        await is_running.wait()
    await server._tick()
    assert server._status == health_pb2.HealthCheckResponse.SERVING
    read = server.service.metrics.registry.get_sample_value
    assert read("palimpsest_cache_task_failures_total", {"task": "the rehearsal"}) == 1


async def test_the_failure_of_a_task_that_nothing_waits_for_is_counted(server: CacheServer) -> None:
    async def fail() -> None:
        raise LookupError

    task: asyncio.Task[None] | None = asyncio.create_task(fail())
    await asyncio.sleep(0.01)
    assert task is not None
    assert task.done()
    task = None
    read = server.service.metrics.registry.get_sample_value
    assert read("palimpsest_cache_task_failures_total", {"task": "another task of the event loop"}) == 1


async def test_an_instance_whose_metrics_are_no_longer_served_is_not_healthy(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ServerConfig(port=0, metrics_port=free_port(), grace_s=0.0, tick_s=3600.0)
    async with CacheServer(config, MemoryStore(clock=clock)) as server:
        await server._tick()
        assert server._status == health_pb2.HealthCheckResponse.SERVING
        thread = server._metrics_thread
        assert thread is not None
        with monkeypatch.context() as patch:
            patch.setattr(thread, "is_alive", lambda: False)
            await server._tick()
        assert server._status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_watch_ends_when_the_service_loses_its_store(
    server: CacheServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The instance can't know what the others accept, so it must not call the watcher's view up to date."""
    monkeypatch.setattr("cache_service.rpc.service.IDLE_UPDATE_S", 0.01)
    watch = server.service.watch(Revision(0), server.service.store.incarnation)
    assert (await anext(watch)).events == ()
    monkeypatch.setattr(MemoryStore, "sync", AsyncMock(side_effect=CacheServiceUnavailable("away")))
    with pytest.raises(CacheServiceUnavailable):
        await anext(watch)


async def test_an_occupied_port_is_an_error_that_names_the_option(server: CacheServer, clock: FakeClock) -> None:
    with pytest.raises(InvalidRequest, match="--port"):
        async with CacheServer(ServerConfig(port=server.port), MemoryStore(clock=clock)):
            pass
