"""Derive from each event the facts that it changes. No other module interprets events. Pure.

A state, a mirror and a store in a Redis-protocol server all carry out these changes, so they can't disagree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import assert_never

from cache_service.core.contexts import Contexts, apply_edits
from cache_service.core.depths import Depths
from cache_service.core.directory import Directory
from cache_service.core.events import (
    Announced,
    Built,
    Created,
    Deleted,
    Draining,
    Edited,
    Event,
    Granted,
    Joined,
    Left,
    Limited,
    Released,
    Renewed,
    Withdrawn,
)
from cache_service.core.types import Build, Context, DepthLimit, Lease, Placement, PrefixKey, ReplicaId

Fact = Lease | ReplicaId | Placement | Context | Build | DepthLimit
"""A member, a draining member, an entry, a context, a build, or a limit on the depth of an entry's reuse."""


@dataclass(frozen=True, slots=True)
class Put:
    """`fact` is true from now on, and replaces the known fact with the same identity."""

    fact: Fact
    replaced: Context | None = None
    """The earlier version of the context, if `fact` is an edited or renewed context."""


@dataclass(frozen=True, slots=True)
class Drop:
    """`fact` is no longer true."""

    fact: Fact


Change = Put | Drop


class ChangeReader:
    """Reads the changes of successive events of one decision, given the facts before it.

    A decision that withdraws an entry announces none of the same key.
    """

    def __init__(self, directory: Directory, contexts: Contexts, depths: Depths) -> None:
        self._directory, self._contexts, self._depths = directory, contexts, depths
        self._withdrawn: set[tuple[PrefixKey, ReplicaId]] = set()

    def changes_of(self, event: Event) -> Iterator[Change]:
        """Yield the changes that the next event makes."""
        match event:
            case (
                Joined(lease=fact)
                | Draining(replica=fact)
                | Announced(placement=fact)
                | Created(context=fact)
                | Granted(build=fact)
            ):
                yield Put(fact)
            case Limited(limit=limit):
                if self._directory.has_holder(limit.key):  # a log of an older version limits other keys, too
                    yield Put(limit)
            case Withdrawn(placement=placement):
                yield from self._withdraw(placement)
            case Built(build=fact) | Released(build=fact):
                yield Drop(fact)
            case Edited(context_id=context_id, version=version, edits=edits, lifetime=lifetime):
                before = self._contexts.get(context_id)
                yield Put(apply_edits(before, version, edits, lifetime), before)
            case Renewed(context_id=context_id, lifetime=lifetime):
                before = self._contexts.get(context_id)
                yield Put(replace(before, lifetime=lifetime), before)
            case Deleted(context_id=context_id):
                yield Drop(self._contexts.get(context_id))
            case Left(replica=replica):
                for placement in self._directory.held_by(replica):
                    yield from self._withdraw(placement)
                yield Drop(replica)
                yield Drop(self._directory.lease_of(replica))
            case _:
                assert_never(event)

    def _withdraw(self, placement: Placement) -> Iterator[Change]:
        """Drop the placement and, if it is the last one of its key, the key's depth limits."""
        yield Drop(placement)
        key = placement.key
        self._withdrawn.add((key, placement.replica))
        limits = self._depths.lookup([key])
        if limits and all((key, p.replica) in self._withdrawn for p in self._directory.lookup([key]).get(key, ())):
            for limit in limits:
                yield Drop(limit)


def lease_of(fact: Fact) -> Lease | None:
    """Return the lease on which `fact` depends; members and builds have one."""
    match fact:
        case Lease():
            return fact
        case Build():
            return fact.lease
        case _:
            return None
