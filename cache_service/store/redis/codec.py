"""Encode facts as fields and values of the server's hashes, and changes as arguments of scripts. Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, assert_never

from cache_service.core.events import Event
from cache_service.core.facts import Fact, Put, lease_of
from cache_service.core.state import State
from cache_service.core.types import Build, Context, DepthLimit, Lease, LeaseId, Placement, ReplicaId, Revision
from cache_service.rpc import convert
from protos import cache_v1_pb2 as pb


class Table(enum.Enum):
    """Lists the Redis hashes that hold the facts, one for each type of fact."""

    MEMBERS = "members"
    DRAINING = "draining"
    PLACEMENTS = "placements"
    CONTEXTS = "contexts"
    BUILDS = "builds"
    LIMITS = "limits"


TABLES = tuple(Table)


class Keys:
    """Names the keys of one deployment. The braces put them all in one slot of a Redis Cluster."""

    def __init__(self, namespace: str) -> None:
        self._prefix = f"{{{namespace}}}:"
        self.meta = f"{self._prefix}meta"
        self.log = f"{self._prefix}log"
        self.tables = [f"{self._prefix}{table.value}" for table in TABLES]
        self.all = [self.meta, self.log, *self.tables]
        self.contexts = self.tables[TABLES.index(Table.CONTEXTS)]

    def lease(self, lease: LeaseId) -> str:
        return f"{self._prefix}lease:{lease}"


def append_arguments(keys: Keys, events: Iterable[Event], before: State) -> tuple[list[str], list[Any], list[Any]]:
    """Return keys, encoded events and changes for the script that appends."""
    names = list(keys.all)
    payloads: list[Any] = []
    changes: list[Any] = []
    reader = before.change_reader()
    for event in events:
        payloads.append(convert.event_to_pb(event).SerializeToString())
        for change in reader.changes_of(event):
            table, field, value = encode(change.fact)
            position = 3 + TABLES.index(table)
            changes += ["put", position, field, value] if isinstance(change, Put) else ["drop", position, field]
            if lease := lease_of(change.fact):
                names.append(keys.lease(lease.id))
                began = isinstance(change, Put)
                changes += ["begin", len(names), round(lease.ttl_s * 1000)] if began else ["end", len(names)]
    return names, payloads, changes


def prune_changes(limits: Iterable[bytes], state: State) -> list[Any]:
    """Return the changes that remove the depth limits, given as values of their table, which `state` left out."""
    kept = set(state.depths.all())
    read = map(_DECODERS[Table.LIMITS], limits)
    position = 3 + TABLES.index(Table.LIMITS)
    return [part for limit in read if limit not in kept for part in ("drop", position, encode(limit)[1])]


def encode(fact: Fact) -> tuple[Table, bytes, bytes]:
    """Return the table of `fact`, the field that identifies it there, and its value."""
    match fact:
        case Placement():
            field = _sized(fact.key) + fact.replica.encode()
            return Table.PLACEMENTS, field, convert.placement_to_pb(fact).SerializeToString()
        case Lease():
            return Table.MEMBERS, fact.replica.encode(), convert.lease_to_pb(fact).SerializeToString()
        case Context():
            return Table.CONTEXTS, fact.id.encode(), convert.context_to_pb(fact).SerializeToString()
        case Build():
            field = _sized(fact.key) + fact.epoch.to_bytes(8)
            return Table.BUILDS, field, convert.build_to_pb(fact).SerializeToString()
        case DepthLimit():
            field = _sized(fact.key) + bytes([fact.bucket])
            return Table.LIMITS, field, convert.limit_to_pb(fact).SerializeToString()
        case str():
            return Table.DRAINING, fact.encode(), fact.encode()
        case _:
            assert_never(fact)


_DECODERS: dict[Table, Callable[[bytes], Any]] = {
    Table.MEMBERS: lambda value: convert.lease_from_pb(pb.Lease.FromString(value)),
    Table.DRAINING: lambda value: ReplicaId(value.decode()),
    Table.PLACEMENTS: lambda value: convert.placement_from_pb(pb.Placement.FromString(value)),
    Table.CONTEXTS: lambda value: convert.context_from_pb(pb.Context.FromString(value)),
    Table.BUILDS: lambda value: convert.build_from_pb(pb.Build.FromString(value)),
    Table.LIMITS: lambda value: convert.limit_from_pb(pb.DepthLimit.FromString(value)),
}


def state_of(revision: Revision, tables: Iterable[list[bytes]]) -> State:
    """Return the state whose facts are the values of the tables, in the order of `TABLES`."""
    facts = {table: map(_DECODERS[table], values) for table, values in zip(TABLES, tables, strict=True)}
    contexts = sorted(facts.pop(Table.CONTEXTS), key=lambda context: context.created)
    return State.restore(revision, chain(contexts, *facts.values()))


def event_of(payload: bytes) -> Event:
    return convert.event_from_pb(pb.Event.FromString(payload))


def _sized(key: bytes) -> bytes:
    return len(key).to_bytes(4) + key
