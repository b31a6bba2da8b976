"""Measures the time from sending a commit until watchers in other processes have its event.

The committer runs in the benchmark's process, the service in another, and the watchers in others again, as routers do.
Each watcher has its own connection. All processes share the machine's cores and its monotonic clock, which all times
are read from.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

from benchmarks.report import Row
from cache_service.client.client import CacheClient
from cache_service.core.events import Edited
from cache_service.core.types import Edit, EditId, ReplicaId

WATCHERS = 64
PROCESSES = 2
CONTEXT_TOKENS = 1024
START_S = 60.0

Deliveries = list[tuple[EditId, float]]


@dataclass(frozen=True)
class Latencies:
    """Holds the seconds of each delivery of a commit to a watcher."""

    values_s: list[float]

    @property
    def p50_ms(self) -> float:
        return statistics.median(self.values_s) * 1000

    @property
    def p99_ms(self) -> float:
        return statistics.quantiles(self.values_s, n=100)[98] * 1000

    @property
    def max_ms(self) -> float:
        return max(self.values_s) * 1000

    def row(self) -> Row:
        prefix = f"commit_to_{WATCHERS}_watchers"
        return {f"{prefix}_p50_ms": self.p50_ms, f"{prefix}_p99_ms": self.p99_ms, f"{prefix}_max_ms": self.max_ms}


async def measure_commits(target: str, client: CacheClient, num_commits: int) -> Latencies:
    """Commit, wait until every watcher has the event, and repeat; return all latencies."""
    author, sent, latencies = ReplicaId("bench"), dict[EditId, float](), list[float]()
    async with watchers(target) as next_deliveries:
        context = await client.create_context("model", "salt", [1] * CONTEXT_TOKENS, author=author)
        version = context.version
        for number in range(num_commits):
            edit_id = EditId(f"commit-{number}")
            edits = [Edit(number % CONTEXT_TOKENS, number % CONTEXT_TOKENS + 1, (number,))]
            sent[edit_id] = time.perf_counter()
            version = await client.edit_context(context.id, version.epoch, edits, author=author, edit_id=edit_id)
            latencies += [at - sent[edit_id] for edit_id, at in await next_deliveries()]
        await client.delete_context(context.id, author=author)
    return Latencies(latencies)


@asynccontextmanager
async def watchers(target: str) -> AsyncIterator[Callable[[], Awaitable[Deliveries]]]:
    """Start the watchers, and yield a call that waits for the next commit at all of them and returns its times."""
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for _ in range(PROCESSES):
            ours, theirs = spawn.Pipe(duplex=False)
            process = spawn.Process(target=watch, args=(target, WATCHERS // PROCESSES, theirs), daemon=True)
            process.start()
            pipes.append(ours)
            processes.append(process)

        async def next_deliveries() -> Deliveries:
            return [delivery for pipe in pipes for delivery in await receive(pipe)]

        await next_deliveries()
        yield next_deliveries
    finally:
        for process in processes:
            process.kill()
            process.join()


async def receive(pipe: Connection) -> Deliveries:
    """Return the pipe's next message, without blocking the event loop."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pipe.fileno(), readable.set)
    try:
        async with asyncio.timeout(START_S):
            await readable.wait()
    finally:
        loop.remove_reader(pipe.fileno())
    message: Deliveries = pipe.recv()
    return message


def watch(target: str, num_watchers: int, pipe: Connection) -> None:
    """Run one process of watchers, which sends an empty message when all are ready, then one for each commit."""
    asyncio.run(_watch(target, num_watchers, pipe))


async def _watch(target: str, num_watchers: int, pipe: Connection) -> None:
    deliveries: Deliveries = []
    ready = asyncio.Barrier(num_watchers)

    async def listen() -> None:
        async with CacheClient(target) as client, aclosing(client.watch()) as items:
            await anext(items)  # the snapshot, which a router would apply and forget
            if await ready.wait() == 0:
                pipe.send([])
            async for item in items:
                if isinstance(item, Edited):
                    deliveries.append((item.version.edit_id, time.perf_counter()))
                    if len(deliveries) == num_watchers:
                        pipe.send(deliveries)
                        deliveries.clear()

    await asyncio.gather(*(listen() for _ in range(num_watchers)))
