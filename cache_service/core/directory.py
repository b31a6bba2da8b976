"""Keep the members, and which member holds which prefix. Pure.

A decision changes nothing: it checks the request against the present state and returns the events that would
carry it out, numbered from the revision `at`. Only `put_...` and `drop_...` write, and only `State.apply` calls them.
So a decision can be repeated when another writer was faster, and a copy that applies the same events in the same order
is identical.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from heapq import nlargest

from cache_service.core.bounds import require_key, require_name
from cache_service.core.events import Announced, Draining, Joined, Left, Withdrawn
from cache_service.core.types import (
    ContextId,
    DepthTable,
    Epoch,
    Lease,
    LeaseId,
    Placement,
    PrefixKey,
    ReplicaId,
    Revision,
)
from cache_service.errors import InvalidRequest, LeaseRefused

MIN_TTL_S = 0.1
MAX_TTL_S = 3600.0


class Directory:
    """Holds members with their leases, and placements by prefix and by member."""

    def __init__(self) -> None:
        self._members: dict[ReplicaId, Lease] = {}
        self._holders: dict[PrefixKey, dict[ReplicaId, Placement]] = {}
        self._held: dict[ReplicaId, set[PrefixKey]] = {}
        self._draining: set[ReplicaId] = set()

    def register(
        self, replica: ReplicaId, ttl_s: float, at: Revision, depth_table: DepthTable | None = None
    ) -> tuple[Left | Joined, ...]:
        """Grant `replica` a new lease, whose id is the revision of its Joined event; an older lease ends first."""
        require_name(replica)
        if not MIN_TTL_S <= ttl_s <= MAX_TTL_S:
            raise InvalidRequest(f"ttl_s must lie within {MIN_TTL_S} and {MAX_TTL_S} seconds, got {ttl_s}")
        left = (Left(at, replica),) if replica in self._members else ()
        joined = Revision(at + len(left))
        return (*left, Joined(joined, Lease(LeaseId(joined), replica, ttl_s, depth_table)))

    def require(self, lease: Lease) -> Lease:
        """Return the member's lease as granted. Raises LeaseRefused unless it is the current one of its replica."""
        granted = self._members.get(lease.replica)
        if granted is None:
            raise LeaseRefused(f"replica {lease.replica!r} is not a member: register again")
        if granted.id != lease.id:
            raise LeaseRefused(f"lease {lease.id} of replica {lease.replica!r} was superseded by {granted.id}")
        return granted

    def drain(self, lease: Lease, at: Revision) -> tuple[Draining, ...]:
        """Mark the member as draining; return no event if it is draining already."""
        self.require(lease)
        if lease.replica in self._draining:
            return ()
        return (Draining(at, lease.replica),)

    def with_leases(self, leases: Collection[LeaseId]) -> list[ReplicaId]:
        """Return the members whose lease is among `leases`."""
        return [replica for replica, lease in self._members.items() if lease.id in leases]

    def remove(self, replicas: Iterable[ReplicaId], at: Revision) -> tuple[Left, ...]:
        """Remove members with all their placements."""
        return tuple(Left(Revision(at + i), replica) for i, replica in enumerate(replicas))

    def announce(self, lease: Lease, placements: Sequence[Placement], at: Revision) -> tuple[Announced, ...]:
        """Announce each placement that differs from the known one; of several with one key, the last wins."""
        self.require(lease)
        for placement in placements:
            require_key(placement.key)
            if placement.replica != lease.replica:
                raise InvalidRequest(f"lease of {lease.replica!r} can't announce for {placement.replica!r}")
            if placement.context is None and placement.epoch != 0:
                raise InvalidRequest(f"a prefix without a context stays at epoch 0, got {placement.epoch}")
        latest = {placement.key: placement for placement in placements}
        changed = [placement for placement in latest.values() if self._has_changed(placement)]
        return tuple(Announced(Revision(at + i), placement) for i, placement in enumerate(changed))

    def _has_changed(self, placement: Placement) -> bool:
        """Compare `placement` with the known one; a difference only in a missing token doesn't count."""
        known = self.find(placement.key, placement.replica)
        if known is not None and known.token is not None and placement.token is None:
            known = replace(known, token=None)
        return placement != known

    def find(self, key: PrefixKey, replica: ReplicaId) -> Placement | None:
        return self._holders.get(key, {}).get(replica)

    def withdraw(self, lease: Lease, keys: Sequence[PrefixKey], at: Revision) -> tuple[Withdrawn, ...]:
        """Withdraw each of `keys` that the member holds."""
        self.require(lease)
        held = self._held[lease.replica]
        return _withdrawn([self._holders[key][lease.replica] for key in dict.fromkeys(keys) if key in held], at)

    def withdraw_stale(
        self, context: ContextId, keys: Iterable[PrefixKey], newest: Epoch, at: Revision
    ) -> tuple[Withdrawn, ...]:
        """Withdraw every member's entries under `keys` that are of the context at epoch `newest` or before."""
        held = (p for key in dict.fromkeys(keys) for p in self._holders.get(key, {}).values())
        return _withdrawn([p for p in held if p.context == context and p.epoch <= newest], at)

    def lookup(self, keys: Sequence[PrefixKey]) -> dict[PrefixKey, tuple[Placement, ...]]:
        """Return the placements of `keys`; a key without holders is absent."""
        return {key: tuple(holders.values()) for key in keys if (holders := self._holders.get(key))}

    def has_holder(self, key: PrefixKey) -> bool:
        return key in self._holders

    def held_by(self, replica: ReplicaId) -> tuple[Placement, ...]:
        """Return the placements of one member."""
        return tuple(self._holders[key][replica] for key in self._held.get(replica, ()))

    def hottest(self, count: int, is_usable: Callable[[Placement], bool]) -> tuple[Placement, ...]:
        """Return the hottest usable placement of each of the `count` prefixes that served most, hottest first."""
        usable = (filter(is_usable, holders.values()) for holders in self._holders.values())
        best = (max(holders, key=lambda p: p.heat, default=None) for holders in usable)
        return tuple(nlargest(count, filter(None, best), key=lambda p: p.heat))

    def is_draining(self, replica: ReplicaId) -> bool:
        return replica in self._draining

    def lease_of(self, replica: ReplicaId) -> Lease:
        """Return the lease of a member. Raises KeyError for any other replica."""
        return self._members[replica]

    def depth_table_versions(self) -> frozenset[int]:
        """Return the versions of the depth table that members have."""
        tables = (lease.depth_table for lease in self._members.values())
        return frozenset(table.version for table in tables if table is not None)

    def members(self) -> tuple[Lease, ...]:
        return tuple(self._members.values())

    def placements(self) -> Iterator[Placement]:
        for holders in self._holders.values():
            yield from holders.values()

    @property
    def num_placements(self) -> int:
        return sum(map(len, self._held.values()))

    def put_member(self, lease: Lease) -> None:
        self._members[lease.replica] = lease
        self._held.setdefault(lease.replica, set())

    def drop_member(self, lease: Lease) -> None:
        """Remove a member that has no placements left."""
        del self._members[lease.replica]
        del self._held[lease.replica]

    def put_draining(self, replica: ReplicaId) -> None:
        self._draining.add(replica)

    def drop_draining(self, replica: ReplicaId) -> None:
        self._draining.discard(replica)

    def put_placement(self, placement: Placement) -> None:
        self._holders.setdefault(placement.key, {})[placement.replica] = placement
        self._held.setdefault(placement.replica, set()).add(placement.key)

    def drop_placement(self, placement: Placement) -> None:
        self._held[placement.replica].remove(placement.key)
        holders = self._holders[placement.key]
        del holders[placement.replica]
        if not holders:
            del self._holders[placement.key]

    def check_integrity(self) -> None:
        """Raise AssertionError unless both indexes agree and every placement belongs to a member."""
        by_key = {(key, replica) for key, holders in self._holders.items() for replica in holders}
        by_replica = {(key, replica) for replica, keys in self._held.items() for key in keys}
        if by_key != by_replica:
            raise AssertionError(f"indexes differ in {by_key ^ by_replica}")
        if set(self._held) != set(self._members):
            raise AssertionError(f"placements of replicas that are no members: {set(self._held) ^ set(self._members)}")
        if not all(self._holders.values()):
            raise AssertionError("a key without holders is still listed")

    def __repr__(self) -> str:
        return f"<Directory [{len(self._members)} members, {len(self._holders)} prefixes, {self.num_placements} held]>"


def _withdrawn(placements: Iterable[Placement], at: Revision) -> tuple[Withdrawn, ...]:
    return tuple(Withdrawn(Revision(at + i), placement) for i, placement in enumerate(placements))
