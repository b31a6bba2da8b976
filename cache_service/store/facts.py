"""What an event does to the facts and leases that a store keeps beside its log. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from cache_service.core.contexts import committed
from cache_service.core.state import State
from cache_service.core.types import Build, Context, DepthLimit, Event, EventKind, Lease, Placement, ReplicaId


class Table(enum.Enum):
    """One table a kind of fact."""

    MEMBERS = "members"
    DRAINING = "draining"
    PLACEMENTS = "placements"
    CONTEXTS = "contexts"
    BUILDS = "builds"
    LIMITS = "limits"


Fact = Lease | ReplicaId | Placement | Context | Build | DepthLimit


@dataclass(frozen=True, slots=True)
class Put:
    """`fact` replaces what its table holds under the same field."""

    table: Table
    fact: Fact


@dataclass(frozen=True, slots=True)
class Drop:
    """Whatever the table holds under the field of `fact` goes."""

    table: Table
    fact: Fact


def changes_of(event: Event, before: State) -> Iterator[Put | Drop]:
    """What `event` changes, given the state before the decision that it is part of."""
    match event:
        case Event(kind=EventKind.JOINED, lease=Lease() as lease):
            yield Put(Table.MEMBERS, lease)
        case Event(kind=EventKind.DRAINING, replica=replica):
            yield Put(Table.DRAINING, replica)
        case Event(kind=EventKind.LEFT, replica=replica):
            yield Drop(Table.MEMBERS, before.directory.lease_of(replica))
            yield Drop(Table.DRAINING, replica)
            for placement in before.directory.held_by(replica):
                yield Drop(Table.PLACEMENTS, placement)
        case Event(kind=EventKind.ANNOUNCED, placement=Placement() as placement):
            yield Put(Table.PLACEMENTS, placement)
        case Event(kind=EventKind.WITHDRAWN, placement=Placement() as placement):
            yield Drop(Table.PLACEMENTS, placement)
        case Event(kind=EventKind.CREATED, context=Context() as context):
            yield Put(Table.CONTEXTS, context)
        case Event(kind=EventKind.COMMITTED, commit=commit) if commit is not None:
            yield Put(Table.CONTEXTS, committed(before.contexts.get(commit.context), commit))
        case Event(kind=EventKind.DELETED, context_id=context_id) if context_id is not None:
            yield Drop(Table.CONTEXTS, before.contexts.get(context_id))
        case Event(kind=EventKind.GRANTED, build=Build() as build):
            yield Put(Table.BUILDS, build)
        case Event(build=Build() as build):
            yield Drop(Table.BUILDS, build)
        case Event(kind=EventKind.LIMITED, limit=DepthLimit() as limit):
            yield Put(Table.LIMITS, limit)


def leases_of(event: Event, before: State) -> tuple[list[Lease], list[Lease]]:
    """The leases that `event` begins, and those that it ends."""
    match event:
        case Event(kind=EventKind.JOINED, lease=Lease() as lease):
            return [lease], []
        case Event(kind=EventKind.LEFT, replica=replica):
            return [], [before.directory.lease_of(replica)]
        case Event(kind=EventKind.GRANTED, build=Build() as build):
            return [build.lease], []
        case Event(build=Build() as build):
            return [], [build.lease]
    return [], []
