"""Facts as fields and values of the server's hashes, and changes as arguments of the commit script. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from cache_service.core.state import State
from cache_service.core.types import Build, Context, DepthLimit, Event, Lease, LeaseId, Placement, ReplicaId, Revision
from cache_service.rpc import convert
from cache_service.store.facts import Fact, Put, Table, changes_of, leases_of
from protos import cache_v1_pb2 as pb

TABLES = tuple(Table)


class Keys:
    """Names of the keys of one deployment. The braces put them all in one slot of a Redis Cluster."""

    def __init__(self, namespace: str) -> None:
        self._prefix = f"{{{namespace}}}:"
        self.meta = f"{self._prefix}meta"
        self.log = f"{self._prefix}log"
        self.tables = [f"{self._prefix}{table.value}" for table in TABLES]

    def lease(self, lease: LeaseId) -> str:
        return f"{self._prefix}lease:{lease}"


def commit_call(keys: Keys, events: Iterable[Event], before: State) -> tuple[list[str], list[Any], list[Any]]:
    """Keys, encoded events and changes for the commit script."""
    names = [keys.meta, keys.log, *keys.tables]
    payloads: list[Any] = []
    changes: list[Any] = []
    for event in events:
        payloads.append(convert.event_to_pb(event).SerializeToString())
        for change in changes_of(event, before):
            place = 3 + TABLES.index(change.table)
            field, value = encode(change.fact)
            changes += ["put", place, field, value] if isinstance(change, Put) else ["drop", place, field]
        begun, ended = leases_of(event, before)
        for lease in begun:
            names.append(keys.lease(lease.id))
            changes += ["begin", len(names), round(lease.ttl_s * 1000)]
        for lease in ended:
            names.append(keys.lease(lease.id))
            changes += ["end", len(names)]
    return names, payloads, changes


def encode(fact: Fact) -> tuple[bytes, bytes]:
    """The field that identifies `fact` within its table, and its value."""
    match fact:
        case Placement():
            return _sized(fact.key) + fact.replica.encode(), convert.placement_to_pb(fact).SerializeToString()
        case Lease():
            return fact.replica.encode(), convert.lease_to_pb(fact).SerializeToString()
        case Context():
            return fact.id.encode(), convert.context_to_pb(fact).SerializeToString()
        case Build():
            return _sized(fact.key) + fact.epoch.to_bytes(8), convert.build_to_pb(fact).SerializeToString()
        case DepthLimit():
            return _sized(fact.key) + bytes([fact.bucket]), convert.limit_to_pb(fact).SerializeToString()
        case str():
            return fact.encode(), fact.encode()


_DECODERS: dict[Table, Callable[[bytes], Any]] = {
    Table.MEMBERS: lambda value: convert.lease_from_pb(pb.Lease.FromString(value)),
    Table.DRAINING: lambda value: ReplicaId(value.decode()),
    Table.PLACEMENTS: lambda value: convert.placement_from_pb(pb.Placement.FromString(value)),
    Table.CONTEXTS: lambda value: convert.context_from_pb(pb.Context.FromString(value)),
    Table.BUILDS: lambda value: convert.build_from_pb(pb.Build.FromString(value)),
    Table.LIMITS: lambda value: convert.limit_from_pb(pb.DepthLimit.FromString(value)),
}


def state_of(revision: Revision, tables: Iterable[list[bytes]]) -> State:
    """The state whose facts are the values of the tables, in the order of `TABLES`."""
    facts = {table: map(_DECODERS[table], values) for table, values in zip(TABLES, tables, strict=True)}
    return State.restore(
        revision,
        members=facts[Table.MEMBERS],
        placements=facts[Table.PLACEMENTS],
        draining=facts[Table.DRAINING],
        contexts=facts[Table.CONTEXTS],
        builds=facts[Table.BUILDS],
        limits=facts[Table.LIMITS],
    )


def event_of(payload: bytes) -> Event:
    return convert.event_from_pb(pb.Event.FromString(payload))


def _sized(key: bytes) -> bytes:
    return len(key).to_bytes(4) + key
