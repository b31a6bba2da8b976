"""Kill the primary that sentinels find for a store, or demote it while it lives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from cache_service.core.types import Lease
from cache_service.errors import CacheServiceUnavailable, Compacted
from cache_service.store.redis.scripts import REVISION_JUMP
from cache_service.store.redis.store import RedisStore
from cache_service.testing import free_port
from cache_service.testing.processes import RedisProcess
from tests.contract.servers import opened, round_trip
from tests.contract.test_store import announce, joined
from tests.support.requirements import needs_redis
from tests.support.waiting import until
from tests.unit.cache_service.builders import ANNA, key, placed

pytestmark = needs_redis
USER, PASSWORD = "default", "secret"


class Group:
    """Runs a primary, its replica, and a sentinel that watches both."""

    def __init__(self, start: Callable[..., RedisProcess], directory: Path) -> None:
        auth = ("--requirepass", PASSWORD, "--masterauth", PASSWORD, "--repl-diskless-sync-delay", "0")
        self.servers = [start(*auth)]
        self.servers.append(start(*auth, "--replicaof", "127.0.0.1", str(self.servers[0].port)))
        self.port = free_port()
        config = directory / "sentinel.conf"
        config.write_text(
            f"sentinel monitor cache 127.0.0.1 {self.servers[0].port} 1\n"
            f"sentinel auth-pass cache {PASSWORD}\n"
            "sentinel down-after-milliseconds cache 500\n"
            "sentinel failover-timeout cache 5000\n"
            f"port {self.port}\n"
        )
        start(str(config), "--sentinel", port=self.port)

    @property
    def url(self) -> str:
        return f"redis+sentinel://{USER}:{PASSWORD}@127.0.0.1:{self.port}/cache/0"

    def ask_sentinel(self, *words: str) -> Any:
        with redis.Redis(port=self.port, decode_responses=True) as client:
            return client.execute_command("SENTINEL", *words)

    def primary(self) -> int:
        """Return the primary's port, as the sentinel knows it."""
        return int(self.ask_sentinel("GET-MASTER-ADDR-BY-NAME", "cache")[1])

    def is_whole(self) -> bool:
        """Return True once the other server follows the primary and the sentinel knows it."""
        replicas = self.ask_sentinel("REPLICAS", "cache")
        return [(replica["flags"], replica["master-link-status"]) for replica in replicas] == [("slave", "ok")]

    def replicate(self) -> None:
        """Return once the replica has all that the primary has."""
        with redis.Redis(port=self.primary(), password=PASSWORD) as client:
            assert client.wait(1, 30_000) == 1


@pytest.fixture
async def group(start: Callable[..., RedisProcess], tmp_path: Path) -> Group:
    group = Group(start, tmp_path)
    await until(group.is_whole, reason=lambda: "the sentinel sees no replica that follows the primary")
    return group


async def announce_at_last(store: RedisStore, lease: Lease, name: str) -> None:
    """Announce as soon as a primary answers again."""

    async def is_announced() -> bool:
        await announce(store, lease, placed(name, ANNA))
        return True

    await until(is_announced, reason=lambda: "no primary answers", poll_s=0.05, ignoring=CacheServiceUnavailable)


async def test_the_primary_is_found_by_its_sentinels(group: Group) -> None:
    await round_trip(group.url)


async def test_a_replica_takes_over_from_a_dead_primary(group: Group) -> None:
    async with opened(group.url, timeout_s=5.0) as store:
        lease = await joined(store, ANNA)
        await announce(store, lease, placed("a", ANNA))
        group.replicate()
        incarnation, revision = store.incarnation, store.state.revision
        group.servers[0].kill()
        await announce_at_last(store, lease, "b")
        assert group.primary() == group.servers[1].port
        assert store.incarnation != incarnation
        assert store.state.revision > revision + REVISION_JUMP
        assert set(store.state.directory.lookup([key("a"), key("b")])) == {key("a"), key("b")}
        with pytest.raises(Compacted):
            store.feed.read(revision, 1)


async def test_a_demoted_primary_is_not_believed_and_begins_a_new_incarnation_when_promoted(group: Group) -> None:
    """It never restarts, so it still knows the scripts of its first term, and may lack what the other one accepted."""
    first, second = (redis.Redis(port=server.port, password=PASSWORD) for server in group.servers)
    async with opened(f"redis://:{PASSWORD}@127.0.0.1:{group.servers[0].port}/0") as store:
        lease = await joined(store, ANNA)
        await announce(store, lease, placed("a", ANNA))
        incarnation, revision = store.incarnation, store.state.revision
        group.replicate()
        second.replicaof("NO", "ONE")
        async with opened(f"redis://:{PASSWORD}@127.0.0.1:{group.servers[1].port}/0"):
            first.replicaof("127.0.0.1", str(group.servers[1].port))
            await until(lambda: first.info("replication")["master_link_status"] == "up")
            assert second.wait(1, 30_000) == 1
        with pytest.raises(CacheServiceUnavailable, match="replica"):
            await store.sync()
        with pytest.raises(CacheServiceUnavailable):
            await announce(store, lease, placed("b", ANNA))
        first.replicaof("NO", "ONE")
        await announce(store, lease, placed("c", ANNA))
        assert store.incarnation != incarnation
        assert store.state.revision > revision + REVISION_JUMP
        assert set(store.state.directory.lookup([key("a"), key("c")])) == {key("a"), key("c")}
    first.close()
    second.close()
