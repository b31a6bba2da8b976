"""Measures the cache service: look-ups and announcements a second, time to every watcher, bytes an entry, growth.

The service, the Redis-protocol server and the watchers run as processes of their own. This process runs the other
clients, and all processes share the machine's cores.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cache_load import entry, key_of, redis, repeat, service, soak
from benchmarks.cache_scale import ClusterResult, measure_at_service, measure_in_process
from benchmarks.cache_watch import WATCHERS, Latencies, measure_commits
from benchmarks.report import Bar, Report, Row, cpu_name
from cache_service.client.client import CacheClient
from cache_service.core.types import ReplicaId
from cache_service.testing.processes import ServiceProcess

LOOKUP_BATCH = 256
CONCURRENCY = 64
NUM_REPLICAS = 1000


@dataclass(frozen=True)
class Effort:
    """Sets how long and how much to measure."""

    seconds: float
    num_commits: int
    num_entries: int
    mortal_ttl_s: float
    soak_s: float


QUICK = Effort(seconds=2.0, num_commits=250, num_entries=50_000, mortal_ttl_s=4.0, soak_s=8.0)
FULL = Effort(seconds=10.0, num_commits=1000, num_entries=1_000_000, mortal_ttl_s=60.0, soak_s=600.0)


@dataclass(frozen=True)
class ServiceResult:
    """Holds what a service over one store reaches."""

    row: Row
    announces_per_s: float
    keys_per_s: float
    latencies: Latencies


async def measure_over_grpc(process: ServiceProcess, store: str, effort: Effort) -> ServiceResult:
    """Announce one entry a call, then look up many keys a call, then commit under many watchers."""
    async with CacheClient(process.target, timeout_s=10.0) as client:
        lease = await client.register(ReplicaId("bench"), 600.0)
        announces = await repeat(
            lambda n: client.announce(lease, [entry(n, lease.replica)]), effort.seconds, CONCURRENCY
        )
        keys = [key_of(number) for number in range(LOOKUP_BATCH)]
        await client.announce(lease, [entry(number, lease.replica) for number in range(LOOKUP_BATCH)])
        lookups = await repeat(lambda n: client.lookup(keys), effort.seconds, 4)
        latencies = await measure_commits(process.target, client, effort.num_commits)
    row = {
        "what": f"over gRPC: {store} store",
        "announces_per_s": announces,
        "lookup_keys_per_s": lookups * LOOKUP_BATCH,
        **latencies.row(),
    }
    return ServiceResult(row, announces, lookups * LOOKUP_BATCH, latencies)


def measure(effort: Effort) -> Report:
    local, local_keys_per_s = measure_in_process(num_replicas=200, num_entries=200_000)
    with service() as process:
        memory = asyncio.run(measure_over_grpc(process, "memory", effort))
    with redis() as store, service("--store", store.url) as process:
        shared = asyncio.run(measure_over_grpc(process, "Redis", effort))
    with service() as process:
        cluster = asyncio.run(measure_at_service(process, NUM_REPLICAS, effort.num_entries, effort.mortal_ttl_s))
    with service("--history", "4096") as process:
        soaked, growth = asyncio.run(soak(process, effort.soak_s))
    rows = [line for row in (local, memory.row, shared.row, cluster.row, soaked) for line in lines(row)]
    speed = [
        Bar("in-process look-ups at 200 k entries, keys/s", local_keys_per_s, ">=", 200_000),
        *speed_bars("memory", memory, announces_per_s=1_500),
        *speed_bars("Redis", shared, announces_per_s=1_000),
    ]
    size = [
        Bar("resident bytes an entry, in process", local["bytes_an_entry"], "<=", 1024),
        *cluster_bars(cluster, effort.num_entries),
        Bar("growth of the soak after warm-up, percent", growth, "<=", 2.0),
    ]
    return Report("cache_service", rows, [*speed, *size], device=cpu_name())


def lines(row: Row) -> list[Row]:
    """Split a row into one line a figure, since hardly two rows have the same figures."""
    return [{"what": row["what"], "figure": name, "value": row[name]} for name in row if name != "what"]


def speed_bars(store: str, result: ServiceResult, announces_per_s: float) -> list[Bar]:
    return [
        Bar(f"look-ups over gRPC, batched, {store}, keys/s", result.keys_per_s, ">=", 30_000),
        Bar(f"single announces over gRPC, {store}, 1/s", result.announces_per_s, ">=", announces_per_s),
        Bar(f"commit to {WATCHERS} watchers, {store}, p99, ms", result.latencies.p99_ms, "<", 25.0),
    ]


def cluster_bars(cluster: ClusterResult, num_entries: int) -> list[Bar]:
    """Return bars by which a large directory loses no entry and keeps none of a lapsed replica."""
    return [
        Bar(f"{NUM_REPLICAS} replicas: entries told to a late joiner", cluster.num_snapshot, "==", num_entries),
        Bar("entries left once a tenth of the replicas lapsed", cluster.num_left, "==", num_entries * 9 // 10),
    ]


def main(
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure for 45 s at most; the full run takes a quarter of an hour.")
    ] = False,
    soak_s: Annotated[
        float | None, typer.Option(help="Duration of the soak; 600 s, or 8 s with --quick, by default.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
) -> None:
    """Measure the cache service on this machine."""
    effort = QUICK if quick else FULL
    report = measure(effort if soak_s is None else replace(effort, soak_s=soak_s))
    report.print()
    if json is not None:
        report.write(json)
    raise typer.Exit(not all(bar.holds for bar in report.bars))


if __name__ == "__main__":
    typer.run(main)
