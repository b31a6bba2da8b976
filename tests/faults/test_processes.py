"""Pauses and kills of two instances and a store under load break no invariant, and all views heal."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, aclosing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from cache_service.client.client import CacheClient
from cache_service.core.types import ContextId, Revision, Snapshot
from cache_service.testing import HistoryChecker, Violation, require_same_view
from cache_service.testing.processes import RedisProcess, ServiceProcess
from tests.faults.torment import torment
from tests.faults.workload import STRAGGLE_S, Follower, Worker
from tests.support.requirements import needs_redis
from tests.support.waiting import until

pytestmark = [needs_redis, pytest.mark.system]
NUM_OPERATIONS = 20_000
NUM_WORKERS = 12
ROUNDS = 2
HEAL_S = 60.0
LAG_S = 0.5
"""Seconds that a follower may take to receive what the store has, while leases still lapse."""


@contextmanager
def system(directory: Path) -> Iterator[tuple[RedisProcess, list[ServiceProcess]]]:
    with ExitStack() as stack:
        redis = stack.enter_context(RedisProcess(directory, "--appendonly", "yes", "--appendfsync", "always"))
        instances = [stack.enter_context(ServiceProcess(directory, "--store", redis.url)) for _ in range(2)]
        yield redis, instances


async def snapshot_of(client: CacheClient) -> Snapshot:
    async with aclosing(client.watch()) as watch:
        snapshot = await anext(watch)
    assert isinstance(snapshot, Snapshot)
    return snapshot


async def require_healed(followers: list[Follower], client: CacheClient) -> None:
    """Require that every follower's view comes to equal the store's while no client writes."""

    def revisions() -> list[Revision]:
        return [follower.mirror.revision for follower in followers]

    async def has_healed() -> bool:
        """Return False while followers lag, or the last leases lapse."""
        snapshot = await snapshot_of(client)
        with suppress(AssertionError):
            await until(lambda: set(revisions()) == {snapshot.revision}, LAG_S)
        try:
            for follower in followers:
                require_same_view(follower.mirror.state.snapshot(), snapshot)
                require_same_view(follower.checker.view(), snapshot)
        except Violation:
            if set(revisions()) == {snapshot.revision}:
                raise
            return False
        return True

    await until(has_healed, HEAL_S, lambda: f"the followers are at revisions {revisions()}")


@dataclass
class Outcome:
    checker: HistoryChecker
    workers: list[Worker]
    followers: list[Follower]


async def unleash(redis: RedisProcess, instances: list[ServiceProcess]) -> Outcome:
    """Load and torment the system at once, then wait until every view equals the store's."""
    checker = HistoryChecker(time.monotonic, strays_s=STRAGGLE_S)
    contexts: list[ContextId] = []
    async with AsyncExitStack() as stack:
        targets = [f"{a.target},{b.target}" for a, b in (instances, reversed(instances))]
        clients = [await stack.enter_async_context(CacheClient(target, timeout_s=1.0)) for target in targets]
        workers = [Worker(f"w{i}", clients[i % 2], checker, contexts) for i in range(NUM_WORKERS)]
        followers = [Follower(clients[i % 2]) for i in range(3)]
        following = asyncio.gather(*(follower.follow() for follower in followers))
        tormenting = asyncio.create_task(torment([*instances, redis], random.Random(1), ROUNDS))
        await asyncio.gather(
            *(
                worker.live(lambda: not tormenting.done() or checker.num_operations < NUM_OPERATIONS)
                for worker in workers
            )
        )
        await tormenting
        for worker in workers:
            await worker.leave()
        await require_healed(followers, clients[0])
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
    return Outcome(checker, workers, followers)


@pytest.mark.timeout(1200)
def test_pauses_and_kills_break_no_invariant(tmp_path: Path) -> None:
    with system(tmp_path) as (redis, instances):
        outcome = asyncio.run(unleash(redis, instances))
    assert outcome.checker.num_operations >= NUM_OPERATIONS
    assert outcome.checker.builds.num_fenced > 0
    assert outcome.checker.entries.num_found > 100
    assert outcome.checker.contexts.num_contents > 300
    assert all(follower.checker.num_events > 1000 for follower in outcome.followers)
    assert all(follower.checker.num_snapshots > 1 for follower in outcome.followers), "no watcher had to start again"
    assert sum(worker.refusals["unavailable"] for worker in outcome.workers) > 0, "no fault was ever felt"
