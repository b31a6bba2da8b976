"""Simulates a large cluster, with its directory in this process and with the same directory at a service.

The service runs as a process of its own and is called over gRPC, as by as many workers. A late router joins, and a
tenth of the replicas stop renewing their leases.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

from benchmarks.cache_load import batches, entry, key_of, resident_bytes
from benchmarks.report import Row
from cache_service.client.client import CacheClient
from cache_service.core.events import Event, Left
from cache_service.core.state import State
from cache_service.core.types import Lease, PrefixKey, ReplicaId, Snapshot
from cache_service.testing.processes import ServiceProcess

BATCH = 8
"""Keys of one look-up in process: the candidate prefixes of one request."""
REMOTE_BATCH = 256
LOOKUPS = 200_000
TTL_S = 3600.0


def measure_in_process(num_replicas: int, num_entries: int) -> tuple[Row, float]:
    """Fill one state, look entries up in scattered order, and let one member lapse; return a row and keys/s."""
    state, each = State(), num_entries // num_replicas
    before_bytes = resident_bytes()
    started = time.perf_counter()
    for r in range(num_replicas):
        replica = ReplicaId(f"replica-{r}")
        apply(state, state.register(replica, TTL_S, state.next_revision))
        lease = state.directory.lease_of(replica)
        placements = [entry(number, replica) for number in range(r * each, (r + 1) * each)]
        apply(state, state.announce(lease, placements, state.next_revision))
    announced_s = time.perf_counter() - started
    entry_bytes = (resident_bytes() - before_bytes) / num_entries
    keys = [key_of(number * 7919 % num_entries) for number in range(min(num_entries, LOOKUPS))]
    started = time.perf_counter()
    found = sum(len(state.lookup(batch, 0)) for batch in batches(keys, BATCH))
    keys_per_s = len(keys) / (time.perf_counter() - started)
    if found != len(keys):
        raise RuntimeError(f"{len(keys) - found} of the announced entries were not found")
    started = time.perf_counter()
    apply(state, state.expire({state.directory.lease_of(ReplicaId("replica-0")).id}, state.next_revision))
    row = {
        "what": f"in process: {num_replicas} replicas, {num_entries} entries",
        "announces_per_s": num_entries / announced_s,
        "lookup_keys_per_s": keys_per_s,
        "bytes_an_entry": entry_bytes,
        "lapse_ms": (time.perf_counter() - started) * 1000,
    }
    return row, keys_per_s


def apply(state: State, events: Sequence[Event]) -> None:
    for event in events:
        state.apply(event)


@dataclass(frozen=True)
class ClusterResult:
    """Holds what a service measured and counted under one cluster."""

    row: Row
    num_snapshot: int
    """Entries in the snapshot that a late joiner gets."""
    num_left: int
    """Entries that the service still finds once a tenth of the replicas has lapsed."""


async def measure_at_service(
    process: ServiceProcess, num_replicas: int, num_entries: int, mortal_ttl_s: float
) -> ClusterResult:
    """Register and announce, look up, join late, and let a tenth of the replicas lapse.

    Those have leases of `mortal_ttl_s`, which must last until their entries are announced and looked up and the late
    router has joined.
    """
    each, num_mortal = num_entries // num_replicas, num_replicas // 10
    before_bytes = resident_bytes(process.pid)
    async with CacheClient(process.target, timeout_s=60.0) as client:
        started = time.perf_counter()
        leases = [await client.register(ReplicaId(f"replica-{r}"), TTL_S) for r in range(num_replicas - num_mortal)]
        registered_s = time.perf_counter() - started
        announced_s = await announce_all(client, leases, each, first=0)
        mortals = [await client.register(ReplicaId(f"mortal-{r}"), mortal_ttl_s) for r in range(num_mortal)]
        await announce_all(client, mortals, each, first=len(leases))
        entry_bytes = (resident_bytes(process.pid) - before_bytes) / num_entries
        lookups_per_s = await look_up(client, num_entries)
        async with aclosing(client.watch()) as watch:
            started = time.perf_counter()
            num_snapshot = num_placements(await anext(watch))
            joined_s = time.perf_counter() - started
            for lease in mortals:
                await client.keep_alive(lease)
            due = time.perf_counter() + mortal_ttl_s
            for _ in mortals:
                left = await anext(watch)
                if not isinstance(left, Left):
                    raise RuntimeError(f"the watch must report lapses alone, not {left}")
            lapsed_s = time.perf_counter() - due
        num_left = sum([len(await client.lookup(keys)) for keys in batches(all_keys(num_entries), 4096)])
    row = {
        "what": f"over gRPC: {num_replicas} replicas, {num_entries} entries",
        "registers_per_s": len(leases) / registered_s,
        "announces_per_s": each * len(leases) / announced_s,
        "lookup_keys_per_s": lookups_per_s,
        "bytes_an_entry": entry_bytes,
        "late_joiner_s": joined_s,
        f"{num_mortal}_replicas_gone_after_due_ms": lapsed_s * 1000,
    }
    return ClusterResult(row, num_snapshot, num_left)


def num_placements(item: Snapshot | Event) -> int:
    if not isinstance(item, Snapshot):
        raise RuntimeError(f"a watch must begin with a snapshot, not with {item}")
    return len(item.placements)


def all_keys(num_entries: int) -> list[PrefixKey]:
    return [key_of(number) for number in range(num_entries)]


async def announce_all(client: CacheClient, leases: Sequence[Lease], each: int, first: int) -> float:
    """Announce `each` entries of every member in one call, and return the seconds that all calls take."""
    started = time.perf_counter()
    for r, lease in enumerate(leases, first):
        await client.announce(lease, [entry(number, lease.replica) for number in range(r * each, (r + 1) * each)])
    return time.perf_counter() - started


async def look_up(client: CacheClient, num_entries: int) -> float:
    """Look entries up all over the directory, and return keys/s."""
    keys = [key_of(number * 7919 % num_entries) for number in range(min(num_entries, LOOKUPS))]
    started = time.perf_counter()
    for batch in batches(keys, REMOTE_BATCH):
        await client.lookup(batch)
    return len(keys) / (time.perf_counter() - started)
