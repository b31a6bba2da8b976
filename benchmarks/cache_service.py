"""What the cache service costs: look-ups and announcements a second, time to every watcher, bytes an entry.

The service runs as processes of its own, and this process is its client, so both share the machine's cores.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated

import psutil
import typer

from benchmarks.report import Bar, Report, Row, cpu_name
from cache_service.client import CacheClient
from cache_service.state import State
from cache_service.testing.processes import RedisProcess, ServiceProcess
from cache_service.types import Edit, Event, EventKind, Lease, Placement, PrefixKey, ReplicaId, Snapshot

WATCHERS = 64
LOOKUP_BATCH = 256
IN_PROCESS_BATCH = 8
CONCURRENCY = 64
SOAK_SAMPLE_S = 1.0
WARM_UP = 0.3
"""Of the soak's samples, the share that comes before growth counts."""


def key_of(number: int) -> PrefixKey:
    return PrefixKey(hashlib.blake2b(number.to_bytes(8, "little"), digest_size=20).digest())


def entry(number: int, replica: ReplicaId, heat: int = 0) -> Placement:
    size_bytes = 1_000_000_000 + number
    return Placement(key_of(number), replica, 1000 + number % 1000, 16, size_bytes, heat=heat)


def in_process(num_replicas: int, num_entries: int) -> tuple[Row, dict[str, float]]:
    """Fill one state, look every entry up in random-looking order, and let one member lapse."""
    state, each = State(), num_entries // num_replicas
    before_bytes = resident_bytes()
    started = time.perf_counter()
    for r in range(num_replicas):
        replica = ReplicaId(f"replica-{r}")
        apply(state, state.register(replica, 60.0, state.next_revision))
        lease = state.directory.lease_of(replica)
        placements = [entry(number, replica) for number in range(r * each, (r + 1) * each)]
        apply(state, state.announce(lease, placements, state.next_revision))
    announced_s = time.perf_counter() - started
    entry_bytes = (resident_bytes() - before_bytes) / num_entries
    keys = [key_of(number * 7919 % num_entries) for number in range(min(num_entries, 200_000))]
    started = time.perf_counter()
    found = sum(len(state.lookup(batch, 0)) for batch in batches(keys, IN_PROCESS_BATCH))
    keys_per_s = len(keys) / (time.perf_counter() - started)
    if found != len(keys):
        raise RuntimeError(f"{len(keys) - found} of the announced entries were not found")
    started = time.perf_counter()
    apply(state, state.expire({state.directory.lease_of(ReplicaId("replica-0")).id}, state.next_revision))
    expired_ms = (time.perf_counter() - started) * 1000
    figures = {"keys_per_s": keys_per_s, "entry_bytes": entry_bytes}
    row = {
        "what": f"in process: {num_replicas} replicas, {num_entries} entries",
        "announces_per_s": num_entries / announced_s,
        "lookup_keys_per_s": keys_per_s,
        "bytes_an_entry": entry_bytes,
        "one_member_lapses_ms": expired_ms,
    }
    return row, figures


def apply(state: State, events: Sequence[Event]) -> None:
    for event in events:
        state.apply(event)


def batches(keys: Sequence[PrefixKey], size: int) -> Iterator[Sequence[PrefixKey]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))


def resident_bytes(pid: int | None = None) -> int:
    return int(psutil.Process(pid).memory_info().rss)


async def repeat(call: Callable[[int], Awaitable[object]], seconds: float, concurrency: int) -> float:
    """Calls a second, with so many under way at once."""
    numbers, deadline = itertools.count(), time.perf_counter() + seconds

    async def caller() -> None:
        while time.perf_counter() < deadline:
            await call(next(numbers))

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return next(numbers) / (time.perf_counter() - started)


async def over_grpc(service: ServiceProcess, store: str, seconds: float) -> tuple[Row, dict[str, float]]:
    """Announces one entry a call, then look-ups of many keys a call, then commits under many watchers."""
    async with CacheClient(service.target, timeout_s=10.0) as client:
        lease = await client.register(ReplicaId("bench"), 600.0)
        announces = await repeat(lambda n: client.announce(lease, [entry(n, lease.replica)]), seconds, CONCURRENCY)
        keys = [key_of(number) for number in range(LOOKUP_BATCH)]
        await client.announce(lease, [entry(number, lease.replica) for number in range(LOOKUP_BATCH)])
        lookups = await repeat(lambda n: client.lookup(keys), seconds, 4)
        latencies_s = await commit_latencies(service.target, client, num_commits=round(seconds * 25))
    p50, p99 = statistics.median(latencies_s) * 1000, statistics.quantiles(latencies_s, n=100)[98] * 1000
    figures = {"announces_per_s": announces, "keys_per_s": lookups * LOOKUP_BATCH, "watch_p99_ms": p99}
    row = {
        "what": f"over gRPC: {store} store",
        "announces_per_s": announces,
        "lookup_keys_per_s": lookups * LOOKUP_BATCH,
        f"commit_to_{WATCHERS}_watchers_p50_ms": p50,
        f"commit_to_{WATCHERS}_watchers_p99_ms": p99,
    }
    return row, figures


async def commit_latencies(target: str, client: CacheClient, num_commits: int) -> list[float]:
    """Seconds from the sending of a commit until a watcher has its event, for each commit and watcher."""
    sent: dict[str, float] = {}
    latencies_s: list[float] = []
    heard = asyncio.Semaphore(0)

    async def listen(ready: asyncio.Event) -> None:
        async with CacheClient(target) as own, aclosing(own.watch()) as watch:
            async for item in watch:
                if isinstance(item, Snapshot):
                    ready.set()
                elif item.kind is EventKind.COMMITTED and item.commit is not None:
                    latencies_s.append(time.perf_counter() - sent[item.commit.version.commit])
                    heard.release()

    async with listeners(listen):
        author = ReplicaId("bench")
        context = await client.create_context("model", "salt", [1] * 1024, author=author)
        version = context.version
        for number in range(num_commits):
            commit = type(version.commit)(f"commit-{number}")
            sent[commit] = time.perf_counter()
            edits = [Edit(number % 1024, number % 1024 + 1, (number,))]
            version = await client.commit(context.id, version.epoch, edits, author=author, commit=commit)
            for _ in range(WATCHERS):
                await heard.acquire()
        await client.delete_context(context.id, author=author)
    return latencies_s


@asynccontextmanager
async def listeners(listen: Callable[[asyncio.Event], Awaitable[None]]) -> AsyncIterator[None]:
    """`WATCHERS` of them, each with a connection of its own, once all have their snapshot."""
    ready = [asyncio.Event() for _ in range(WATCHERS)]
    listening = asyncio.gather(*(listen(event) for event in ready))
    for event in ready:
        await event.wait()
    try:
        yield
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def soak(service: ServiceProcess, seconds: float) -> tuple[Row, float]:
    """Growth of the service's memory after warm-up, under announcements, withdrawals, commits and one watcher."""
    samples: list[int] = []
    async with CacheClient(service.target, timeout_s=10.0) as client, aclosing(client.watch()) as watch:
        lease = await client.register(ReplicaId("soak"), 600.0)
        context = await client.create_context("model", "salt", [1] * 256, author=lease.replica)
        listening = asyncio.create_task(drain(watch))
        version, deadline = context.version, time.monotonic() + seconds
        for round_number in itertools.count():
            sample_at = time.monotonic() + SOAK_SAMPLE_S
            while time.monotonic() < sample_at:
                await churn(client, lease, round_number)
                edits = [Edit(0, 1, (round_number,))]
                version = await client.commit(context.id, version.epoch, edits, author=lease.replica)
            samples.append(resident_bytes(service.pid))
            if time.monotonic() > deadline:
                break
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    warm = samples[int(len(samples) * WARM_UP) :]
    half = len(warm) // 2
    growth = statistics.mean(warm[half:]) / statistics.mean(warm[:half]) - 1
    row = {"what": f"soak of {seconds:.0f} s", "resident_mib": warm[-1] / 2**20, "growth_percent": growth * 100}
    return row, growth * 100


async def churn(client: CacheClient, lease: Lease, round_number: int) -> None:
    numbers = range(64)
    await client.announce(lease, [entry(number, lease.replica, heat=round_number) for number in numbers])
    await client.lookup([key_of(number) for number in numbers])
    await client.withdraw(lease, [key_of(number) for number in numbers])


async def drain(watch: AsyncIterator[Snapshot | Event]) -> None:
    async for _ in watch:
        pass


@contextmanager
def service(*options: str) -> Iterator[ServiceProcess]:
    with tempfile.TemporaryDirectory() as directory, ServiceProcess(Path(directory), *options) as process:
        yield process


@contextmanager
def redis() -> Iterator[RedisProcess]:
    with tempfile.TemporaryDirectory() as directory, RedisProcess(Path(directory)) as process:
        yield process


def measure(quick: bool) -> Report:
    seconds = 3.0 if quick else 10.0
    rows: list[Row] = []
    row, local = in_process(num_replicas=200, num_entries=200_000)
    rows.append(row)
    if not quick:
        row, _ = in_process(num_replicas=1000, num_entries=1_000_000)
        rows.append(row)
    with service() as process:
        row, memory = asyncio.run(over_grpc(process, "memory", seconds))
        rows.append(row)
    with redis() as store, service("--store", store.url) as process:
        row, shared = asyncio.run(over_grpc(process, "Redis", seconds))
        rows.append(row)
    with service("--history", "4096") as process:
        row, growth = asyncio.run(soak(process, 12.0 if quick else 600.0))
        rows.append(row)
    bars = [
        Bar("in-process look-ups at 200 k entries, keys/s", local["keys_per_s"], ">=", 200_000),
        Bar("look-ups over gRPC, batched, keys/s", memory["keys_per_s"], ">=", 30_000),
        Bar("single announces over gRPC, memory, 1/s", memory["announces_per_s"], ">=", 1_500),
        Bar("single announces over gRPC, Redis, 1/s", shared["announces_per_s"], ">=", 1_000),
        Bar(f"commit to {WATCHERS} watchers, p99, ms", memory["watch_p99_ms"], "<", 25.0),
        Bar("growth of the soak after warm-up, percent", growth, "<=", 2.0),
    ]
    return Report("cache_service", rows, bars, device=cpu_name())


def main(
    quick: Annotated[
        bool, typer.Option("--quick", help="Within 45 s; the full run takes a quarter of an hour.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the report here, too.")] = None,
) -> None:
    """Measure the cache service on this machine."""
    report = measure(quick)
    report.print()
    if json is not None:
        report.write(json)
    raise typer.Exit(not all(bar.holds for bar in report.bars))


if __name__ == "__main__":
    typer.run(main)
