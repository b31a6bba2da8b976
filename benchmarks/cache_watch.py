"""From a commit's sending until watchers in other processes have its event.

The committer runs in the benchmark's process, the service in its own, and the watchers, as routers do, in others: each
watcher has a connection of its own. All share the machine's cores. Times are of one clock, the machine's monotonic one.
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

Heard = list[tuple[EditId, float]]


@dataclass(frozen=True)
class Latencies:
    """Seconds, one for each commit and watcher."""

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


async def commit_latencies(target: str, client: CacheClient, num_commits: int) -> Latencies:
    """Commit, wait until every watcher has heard of it, and again."""
    author, sent, heard = ReplicaId("bench"), dict[EditId, float](), list[float]()
    async with watchers(target) as all_heard:
        context = await client.create_context("model", "salt", [1] * CONTEXT_TOKENS, author=author)
        version = context.version
        for number in range(num_commits):
            edit_id = EditId(f"commit-{number}")
            edits = [Edit(number % CONTEXT_TOKENS, number % CONTEXT_TOKENS + 1, (number,))]
            sent[edit_id] = time.perf_counter()
            version = await client.edit_context(context.id, version.epoch, edits, author=author, edit_id=edit_id)
            heard += [at - sent[edit_id] for edit_id, at in await all_heard()]
        await client.delete_context(context.id, author=author)
    return Latencies(heard)


@asynccontextmanager
async def watchers(target: str) -> AsyncIterator[Callable[[], Awaitable[Heard]]]:
    """Gives a call that returns, once all watchers have heard of one commit more, when each of them did."""
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for _ in range(PROCESSES):
            ours, theirs = spawn.Pipe(duplex=False)
            process = spawn.Process(target=watch, args=(target, WATCHERS // PROCESSES, theirs), daemon=True)
            process.start()
            pipes.append(ours)
            processes.append(process)

        async def all_heard() -> Heard:
            return [pair for pipe in pipes for pair in await received(pipe)]

        await all_heard()
        yield all_heard
    finally:
        for process in processes:
            process.kill()
            process.join()


async def received(pipe: Connection) -> Heard:
    """The next message, without holding up the event loop meanwhile."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pipe.fileno(), readable.set)
    try:
        async with asyncio.timeout(START_S):
            await readable.wait()
    finally:
        loop.remove_reader(pipe.fileno())
    message: Heard = pipe.recv()
    return message


def watch(target: str, count: int, pipe: Connection) -> None:
    """The whole life of one process of watchers: says that all are ready, then when each heard of each commit."""
    asyncio.run(_watch(target, count, pipe))


async def _watch(target: str, count: int, pipe: Connection) -> None:
    heard: Heard = []
    ready = asyncio.Barrier(count)

    async def listen() -> None:
        async with CacheClient(target) as client, aclosing(client.watch()) as items:
            await anext(items)  # the snapshot, which a router would apply and forget
            if await ready.wait() == 0:
                pipe.send([])
            async for item in items:
                if isinstance(item, Edited):
                    heard.append((item.version.edit_id, time.perf_counter()))
                    if len(heard) == count:
                        pipe.send(heard)
                        heard.clear()

    await asyncio.gather(*(listen() for _ in range(count)))
