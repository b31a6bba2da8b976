"""Keeps the cache service busy for its benchmark and its soak, with entries, callers and processes."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path

import psutil

from benchmarks.report import Row
from cache_service.client.client import CacheClient
from cache_service.core.events import Event
from cache_service.core.types import Edit, Lease, Placement, PrefixKey, ReplicaId, Revision, Snapshot
from cache_service.testing.processes import RedisProcess, ServiceProcess

SAMPLE_S = 1.0
WARM_UP = 0.3
"""Fraction of the soak's samples before growth counts."""


def key_of(number: int) -> PrefixKey:
    return PrefixKey(hashlib.blake2b(number.to_bytes(8, "little"), digest_size=20).digest())


def entry(number: int, replica: ReplicaId, heat: int = 0) -> Placement:
    size_bytes = 1_000_000_000 + number
    return Placement(key_of(number), replica, 1000 + number % 1000, 16, size_bytes, heat=heat)


def batches(keys: Sequence[PrefixKey], size: int) -> Iterator[Sequence[PrefixKey]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))


def resident_bytes(pid: int | None = None) -> int:
    return int(psutil.Process(pid).memory_info().rss)


@contextmanager
def service(*options: str) -> Iterator[ServiceProcess]:
    with tempfile.TemporaryDirectory() as directory, ServiceProcess(Path(directory), *options) as process:
        yield process


@contextmanager
def redis() -> Iterator[RedisProcess]:
    with tempfile.TemporaryDirectory() as directory, RedisProcess(Path(directory)) as process:
        yield process


async def repeat(call: Callable[[int], Awaitable[object]], seconds: float, concurrency: int) -> float:
    """Repeat `call`, `concurrency` calls at a time, and return the calls a second."""
    numbers, deadline = itertools.count(), time.perf_counter() + seconds

    async def caller() -> None:
        while time.perf_counter() < deadline:
            await call(next(numbers))

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return next(numbers) / (time.perf_counter() - started)


async def soak(process: ServiceProcess, seconds: float) -> tuple[Row, float]:
    """Return a row, and the growth of the service's memory after warm-up in percent.

    Meanwhile clients announce, look up, withdraw and commit, a member joins and leaves, and one watcher listens.
    """
    samples: list[int] = []
    revision = Revision(0)
    async with CacheClient(process.target, timeout_s=10.0) as client, aclosing(client.watch()) as watch:
        lease = await client.register(ReplicaId("soak"), 3600.0)
        context = await client.create_context("model", "salt", [1] * 256, author=lease.replica)
        listening = asyncio.create_task(drain(watch))
        version, deadline = context.version, time.monotonic() + seconds
        for turn in itertools.count():
            sample_at = time.monotonic() + SAMPLE_S
            while time.monotonic() < sample_at:
                revision = await churn(client, lease, turn)
                edits = [Edit(0, 1, (turn,))]
                version = await client.edit_context(context.id, version.epoch, edits, author=lease.replica)
            samples.append(resident_bytes(process.pid))
            if time.monotonic() > deadline:
                break
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    warm = samples[int(len(samples) * WARM_UP) :]
    half = len(warm) // 2
    growth = (statistics.mean(warm[half:]) / statistics.mean(warm[:half]) - 1) * 100
    row = {
        "what": f"soak of {seconds:.0f} s",
        "revisions": revision,
        "resident_mib": warm[-1] / 2**20,
        "growth_percent": growth,
    }
    return row, growth


async def churn(client: CacheClient, lease: Lease, turn: int) -> Revision:
    """Announce entries and withdraw them, and let a member join and leave."""
    numbers = range(64)
    await client.announce(lease, [entry(number, lease.replica, heat=turn) for number in numbers])
    await client.lookup([key_of(number) for number in numbers])
    await client.withdraw(lease, [key_of(number) for number in numbers])
    guest = await client.register(ReplicaId("guest"), 60.0)
    return await client.leave(guest)


async def drain(watch: AsyncIterator[Snapshot | Event]) -> None:
    async for _ in watch:
        pass
