"""Derive from each event the facts that it changes. No other module interprets events. Pure.

A state, a mirror and a store in a Redis-protocol server all carry out these changes, so they can't disagree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

from cache_service.core.contexts import Contexts, apply_edits
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
    Withdrawn,
)
from cache_service.core.types import Build, Context, DepthLimit, Lease, Placement, ReplicaId

EndingFact = Lease | ReplicaId | Placement | Context | Build
"""A fact that an event may end: a member, a draining member, an entry, a context or a build."""
Fact = EndingFact | DepthLimit


@dataclass(frozen=True, slots=True)
class Put:
    """`fact` is true from now on, and replaces the known fact with the same identity."""

    fact: Fact
    replaced: Context | None = None
    """The context as it was before, where `fact` is an edited one."""


@dataclass(frozen=True, slots=True)
class Drop:
    """`fact` is no longer true."""

    fact: EndingFact


Change = Put | Drop


def changes_of(event: Event, directory: Directory, contexts: Contexts) -> Iterator[Change]:
    """Yield what `event` changes, given the members, entries and contexts before the decision that it is part of."""
    match event:
        case (
            Joined(lease=fact)
            | Draining(replica=fact)
            | Announced(placement=fact)
            | Created(context=fact)
            | Granted(build=fact)
            | Limited(limit=fact)
        ):
            yield Put(fact)
        case Withdrawn(placement=fact) | Built(build=fact) | Released(build=fact):
            yield Drop(fact)
        case Edited(context_id=context_id, version=version, edits=edits):
            before = contexts.get(context_id)
            yield Put(apply_edits(before, version, edits), before)
        case Deleted(context_id=context_id):
            yield Drop(contexts.get(context_id))
        case Left(replica=replica):
            for placement in directory.held_by(replica):
                yield Drop(placement)
            yield Drop(replica)
            yield Drop(directory.lease_of(replica))
        case _:
            assert_never(event)


def lease_of(fact: Fact) -> Lease | None:
    """Return the lease on which `fact` depends; members and builds have one."""
    match fact:
        case Lease():
            return fact
        case Build():
            return fact.lease
        case _:
            return None
