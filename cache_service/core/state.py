"""Hold the service's facts at one revision, and make decisions that concern several cores. Pure.

A decision takes a request and the revision `at` that its first event would get, and returns events or raises what
it refuses; see `cache_service.core.directory`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Self, assert_never

from cache_service.core.bounds import require_key
from cache_service.core.builds import Builds
from cache_service.core.contexts import MAX_STALENESS, Contexts, growth_by
from cache_service.core.depths import Depths
from cache_service.core.directory import Directory
from cache_service.core.events import Event
from cache_service.core.facts import Change, ChangeReader, Drop, Fact, Put
from cache_service.core.lifetimes import Renewal
from cache_service.core.quotas import UNBOUNDED, ContextQuotas, Usage
from cache_service.core.types import (
    SOLE_TENANT,
    Build,
    Context,
    ContextId,
    DepthLimit,
    DepthTable,
    Edit,
    EditId,
    Epoch,
    FencingToken,
    Lease,
    LeaseId,
    Placement,
    PrefixKey,
    ReplicaId,
    Revision,
    Snapshot,
    TenantId,
)
from cache_service.errors import FencedToken, InvalidRequest, StaleEpoch

Events = tuple[Event, ...]
_CONTEXT_OF = attrgetter("context")
_UNKNOWN_LEASE = LeaseId(0)
EXPIRY = ReplicaId("expiry")
"""The author of the deletion of a context whose lifetime has ended."""


class State:
    """Holds the outcome of all events up to `revision`. Only `apply`, `of` and `restore` write to it."""

    def __init__(self) -> None:
        self.revision = Revision(0)
        self.directory = Directory()
        self.contexts = Contexts()
        self.builds = Builds()
        self.depths = Depths()

    @classmethod
    def restore(cls, revision: Revision, facts: Iterable[Fact]) -> Self:
        """Return the state of these facts; contexts must come in the order of their creation.

        A depth limit without a placement, as an older version kept it, is left out.
        """
        state = cls()
        state.revision = revision
        for fact in facts:
            state._put(fact)
        for limit in state.depths.all():
            if not state.directory.has_holder(limit.key):
                state.depths.drop(limit)
        return state

    @classmethod
    def of(cls, snapshot: Snapshot) -> Self:
        """Return the state that a watcher knows from `snapshot`, which doesn't name the members' leases."""
        members = (Lease(_UNKNOWN_LEASE, replica, 0.0) for replica in snapshot.members)
        facts: list[Fact] = [*members, *snapshot.draining, *snapshot.placements]
        facts += [*snapshot.contexts, *snapshot.builds, *snapshot.limits]
        return cls.restore(snapshot.revision, facts)

    @property
    def next_revision(self) -> Revision:
        return Revision(self.revision + 1)

    def apply(self, event: Event) -> tuple[Change, ...]:
        """Carry out the next event and return what it changed. Raises ValueError on a gap."""
        if event.revision != self.next_revision:
            raise ValueError(f"event {event.revision} can't follow revision {self.revision}")
        changes = tuple(self.change_reader().changes_of(event))
        for change in changes:
            match change:
                case Put(fact=fact):
                    self._put(fact)
                case Drop(fact):
                    self._drop(fact)
                case _:
                    assert_never(change)
        self.revision = event.revision
        return changes

    def change_reader(self) -> ChangeReader:
        """Return a ChangeReader for the events of one decision on this state."""
        return ChangeReader(self.directory, self.contexts, self.depths)

    def check_integrity(self) -> None:
        """Raise AssertionError if facts contradict each other."""
        self.directory.check_integrity()
        for limit in self.depths.all():
            if not self.directory.has_holder(limit.key):
                raise AssertionError(f"{limit} has outlived the last placement of its key")
        self.contexts.check_integrity()

    def _put(self, fact: Fact) -> None:
        match fact:
            case Lease():
                self.directory.put_member(fact)
            case str():
                self.directory.put_draining(fact)
            case Placement():
                self.directory.put_placement(fact)
            case Context():
                self.contexts.put(fact)
            case Build():
                self.builds.put(fact)
            case DepthLimit():
                self.depths.put(fact)
            case _:
                assert_never(fact)

    def _drop(self, fact: Fact) -> None:
        match fact:
            case Lease():
                self.directory.drop_member(fact)
            case str():
                self.directory.drop_draining(fact)
            case Placement():
                self.directory.drop_placement(fact)
            case Context():
                self.contexts.drop(fact)
            case Build():
                self.builds.drop(fact)
            case DepthLimit():
                self.depths.drop(fact)
            case _:
                assert_never(fact)

    def snapshot(self) -> Snapshot:
        members = tuple(lease.replica for lease in self.directory.members())
        return Snapshot(
            self.revision,
            members,
            tuple(self.directory.placements()),
            draining=tuple(filter(self.directory.is_draining, members)),
            contexts=self.contexts.all(),
            builds=self.builds.all(),
            limits=self.depths.all(),
        )

    # Members

    def register(self, replica: ReplicaId, ttl_s: float, at: Revision, depth_table: DepthTable | None = None) -> Events:
        """Grant `replica` a new lease; placements and builds of an older registration end."""
        ended = self.builds.release(self.builds.held_by_replicas({replica}), at)
        return (*ended, *self.directory.register(replica, ttl_s, _after(at, ended), depth_table))

    def leave(self, lease: Lease, at: Revision) -> Events:
        """Remove the member with its placements and builds."""
        self.directory.require(lease)
        return self._remove([lease.replica], [], at)

    def expire(self, lapsed: Collection[LeaseId], at: Revision) -> Events:
        """End the members and builds whose lease is among `lapsed`; leases that have ended already change nothing."""
        return self._remove(self.directory.with_leases(lapsed), self.builds.with_leases(lapsed), at)

    def _remove(self, replicas: list[ReplicaId], builds: list[Build], at: Revision) -> Events:
        ended = self.builds.release(dict.fromkeys((*builds, *self.builds.held_by_replicas(replicas))), at)
        return (*ended, *self.directory.remove(replicas, _after(at, ended)))

    # Entries

    def announce(self, lease: Lease, placements: Sequence[Placement], at: Revision) -> Events:
        """Announce entries that the member found or made without a build: all of them or none."""
        self.directory.require(lease)
        for placement in placements:
            self._require_current(placement.context, placement.epoch, placement.key)
            if placement.token is not None:
                self._require_made(placement, placement.token)
        return self.directory.announce(lease, placements, at)

    def _require_made(self, placement: Placement, token: FencingToken) -> None:
        """Raise FencedToken unless a placement with a token is already listed under that token."""
        known = self.directory.find(placement.key, placement.replica)
        if known is None or known.token != token:
            raise FencedToken(f"token {token} made no listed entry: announce it without a token")

    def lookup(self, keys: Sequence[PrefixKey], max_staleness: int) -> dict[PrefixKey, tuple[Placement, ...]]:
        """Return the holders of each key; an entry of a context is at most `max_staleness` epochs behind the newest."""
        if not 0 <= max_staleness <= MAX_STALENESS:
            raise InvalidRequest(f"max_staleness must lie within 0 and {MAX_STALENESS} epochs, got {max_staleness}")
        found = self.directory.lookup(keys)
        for key, placements in tuple(found.items()):
            if any(map(_CONTEXT_OF, placements)):
                found[key] = tuple(p for p in placements if self._is_fresh(p, max_staleness))
                if not found[key]:
                    del found[key]
        return found

    def hottest(self, count: int) -> tuple[Placement, ...]:
        """Return the prefixes that served most requests, hottest first, each with its hottest fresh holder."""
        return self.directory.hottest(count, lambda placement: self._is_fresh(placement, 0))

    def _is_fresh(self, placement: Placement, max_staleness: int) -> bool:
        if placement.context is None:
            return True
        context = self.contexts.find(placement.context)
        return context is not None and context.epoch - placement.epoch <= max_staleness

    # Builds

    def acquire(
        self, lease: Lease, key: PrefixKey, epoch: Epoch, context: ContextId | None, ttl_s: float, at: Revision
    ) -> Events:
        """Grant the build of (key, epoch) unless one is in progress."""
        self.directory.require(lease)
        self._require_current(context, epoch, key)
        return self.builds.acquire(lease, key, epoch, context, ttl_s, at)

    def complete(self, lease: Lease, token: FencingToken, placement: Placement, at: Revision) -> Events:
        """Announce what was built under `token` and end the build, unless that was done before."""
        self.directory.require(lease)
        made = replace(placement, token=token)
        if self.directory.find(made.key, made.replica) == made:
            return ()
        self._require_current(made.context, made.epoch, made.key)
        build = self.builds.require(lease.replica, made.key, made.epoch, token)
        announced = self.directory.announce(lease, [made], at)
        return (*announced, *self.builds.finish(build, _after(at, announced)))

    def release(self, lease: Lease, key: PrefixKey, epoch: Epoch, token: FencingToken, at: Revision) -> Events:
        """Give up the member's build."""
        self.directory.require(lease)
        return self.builds.release([self.builds.require(lease.replica, key, epoch, token)], at)

    def report_drift(self, lease: Lease, limits: Sequence[DepthLimit], at: Revision) -> Events:
        """Lower the depth to which all members may reuse the prefixes, all or none.

        Raises InvalidRequest for what this member can't know: the drift of an entry that it doesn't hold, by a depth
        table that no member has, or of more layers than its model's.
        """
        member = self.directory.require(lease)
        versions = self.directory.depth_table_versions()
        for limit in limits:
            require_key(limit.key)
            if self.directory.find(limit.key, member.replica) is None:
                raise InvalidRequest(f"replica {member.replica!r} doesn't hold {limit.key.hex()}: announce it first")
            if limit.depth_table_version not in versions:
                raise InvalidRequest(f"no member has version {limit.depth_table_version} of the depth table (profile)")
            num_layers = member.depth_table.num_layers if member.depth_table else 0
            if not 0 <= limit.depth <= num_layers:
                raise InvalidRequest(
                    f"a depth must lie within 0 and the model's {num_layers} layers, got {limit.depth}"
                )
        return self.depths.report(limits, member.replica, at)

    def _require_current(self, context_id: ContextId | None, epoch: Epoch, key: PrefixKey) -> None:
        if context_id is None:
            return
        context = self.contexts.get(context_id)
        if epoch != context.epoch:
            raise StaleEpoch(f"context {context_id} is at epoch {context.epoch}, the entry is of {epoch}")
        if key != context.key:
            raise InvalidRequest(f"context {context_id} has another key at epoch {epoch}: check salt and fingerprint")

    # Contexts

    def create(
        self,
        fingerprint: str,
        salt: str,
        token_ids: Sequence[int],
        masked: Sequence[int],
        edit_id: EditId,
        author: ReplicaId,
        at: Revision,
        *,
        tenant: TenantId = SOLE_TENANT,
        quotas: ContextQuotas = UNBOUNDED,
        renewal: Renewal | None = None,
    ) -> Events:
        """Create a context within the quotas, unless `edit_id` has created one before: that one is counted already."""
        created = self.contexts.create(
            fingerprint, salt, token_ids, masked, edit_id, author, at, tenant=tenant, renewal=renewal
        )
        if created:
            quotas.require_room(Usage(1, len(token_ids)), tenant, self.contexts.usage)
        return created

    def edit(
        self,
        context_id: ContextId,
        expected: Epoch,
        edits: Sequence[Edit],
        edit_id: EditId,
        author: ReplicaId,
        at: Revision,
        *,
        quotas: ContextQuotas = UNBOUNDED,
        renewal: Renewal | None = None,
    ) -> Events:
        """Make a new epoch, end the builds of earlier ones, and withdraw the entries that are now too old to read.

        What the edits add counts for the tenant that created the context, even if another one edits it.
        """
        edited = self.contexts.edit(context_id, expected, edits, edit_id, author, at, renewal=renewal)
        if not edited:
            return ()
        context = self.contexts.get(context_id)
        quotas.require_room(Usage(0, growth_by(edits)), context.tenant, self.contexts.usage)
        return (*edited, *self._end_stale(context, Epoch(expected + 1), _after(at, edited)))

    def delete(self, context_id: ContextId, author: ReplicaId, at: Revision) -> Events:
        """Delete the context with its builds and entries."""
        context = self.contexts.get(context_id)
        deleted = self.contexts.delete(context_id, author, at)
        ended = self.builds.release(self.builds.before_epoch(context_id, None), _after(at, deleted))
        gone = self.directory.withdraw_stale(context_id, context.keys, context.epoch, _after(at, (*deleted, *ended)))
        return (*deleted, *ended, *gone)

    def expire_context(self, context_id: ContextId, now: float, at: Revision) -> Events:
        """Delete the context if its lifetime has ended; one that was renewed or deleted meanwhile stays as it is."""
        context = self.contexts.find(context_id)
        if context is None or context.lifetime is None or context.lifetime.expires_at > now:
            return ()
        return self.delete(context_id, EXPIRY, at)

    def _end_stale(self, context: Context, newest: Epoch, at: Revision) -> Events:
        ended = self.builds.release(self.builds.before_epoch(context.id, newest), at)
        oldest_kept = newest - MAX_STALENESS
        gone = self.directory.withdraw_stale(context.id, context.keys, Epoch(oldest_kept - 1), _after(at, ended))
        return (*ended, *gone)

    def __repr__(self) -> str:
        others = f"{len(self.contexts)} contexts, {len(self.builds)} builds"
        return f"<State at {self.revision}: {self.directory} [{others}]>"


def _after(at: Revision, events: Sequence[Event]) -> Revision:
    return Revision(at + len(events))
