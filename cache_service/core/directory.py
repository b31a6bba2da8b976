"""Who is a member, and which member holds which prefix. Pure: decisions return events, `apply` makes them so.

A decision changes nothing: it checks the request against the present state and returns the events that would
carry it out, numbered from the revision `at`. Only `apply` writes. So a decision can be taken again when another
writer was faster, and a copy that applies the same events in the same order is the same directory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from heapq import nlargest

from cache_service.core.bounds import require_key, require_name
from cache_service.core.types import (
    ContextId,
    Epoch,
    Event,
    EventKind,
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
    """Members with their leases, and placements by prefix and by member."""

    def __init__(self) -> None:
        self._members: dict[ReplicaId, Lease] = {}
        self._holders: dict[PrefixKey, dict[ReplicaId, Placement]] = {}
        self._held: dict[ReplicaId, set[PrefixKey]] = {}
        self._draining: set[ReplicaId] = set()

    def register(self, replica: ReplicaId, ttl_s: float, at: Revision) -> tuple[Event, ...]:
        """A new lease for `replica`; its id is the revision of JOINED. An older registration leaves first."""
        require_name(replica)
        if not MIN_TTL_S <= ttl_s <= MAX_TTL_S:
            raise InvalidRequest(f"ttl_s must lie within {MIN_TTL_S} and {MAX_TTL_S} seconds, got {ttl_s}")
        events = []
        if replica in self._members:
            events.append(Event(at, EventKind.LEFT, replica))
        joined = Revision(at + len(events))
        events.append(Event(joined, EventKind.JOINED, replica, lease=Lease(LeaseId(joined), replica, ttl_s)))
        return tuple(events)

    def require(self, lease: Lease) -> Lease:
        """The member's lease as granted. Raises LeaseRefused unless it is the current one of its replica."""
        granted = self._members.get(lease.replica)
        if granted is None:
            raise LeaseRefused(f"replica {lease.replica!r} is not a member: register again")
        if granted.id != lease.id:
            raise LeaseRefused(f"lease {lease.id} of replica {lease.replica!r} was superseded by {granted.id}")
        return granted

    def drain(self, lease: Lease, at: Revision) -> tuple[Event, ...]:
        """The member takes no new work; none where it said so before."""
        self.require(lease)
        if lease.replica in self._draining:
            return ()
        return (Event(at, EventKind.DRAINING, lease.replica),)

    def under(self, leases: Collection[LeaseId]) -> list[ReplicaId]:
        """The members whose lease is among `leases`."""
        return [replica for replica, lease in self._members.items() if lease.id in leases]

    def remove(self, replicas: Iterable[ReplicaId], at: Revision) -> tuple[Event, ...]:
        """Members go, with all their placements."""
        return tuple(Event(Revision(at + i), EventKind.LEFT, replica) for i, replica in enumerate(replicas))

    def announce(self, lease: Lease, placements: Sequence[Placement], at: Revision) -> tuple[Event, ...]:
        """One event for each placement that differs from what is known; the last of one key wins."""
        self.require(lease)
        for placement in placements:
            require_key(placement.key)
            if placement.replica != lease.replica:
                raise InvalidRequest(f"lease of {lease.replica!r} can't announce for {placement.replica!r}")
            if placement.context is None and placement.epoch != 0:
                raise InvalidRequest(f"a prefix outside of any context stays at epoch 0, got {placement.epoch}")
        latest = {placement.key: placement for placement in placements}
        changed = [p for p in latest.values() if self._is_news(p)]
        return tuple(
            Event(Revision(at + i), EventKind.ANNOUNCED, p.replica, placement=p) for i, p in enumerate(changed)
        )

    def _is_news(self, placement: Placement) -> bool:
        """Whether it says more than what is known; which build made an entry goes without saying."""
        known = self.find(placement.key, placement.replica)
        if known is not None and known.token is not None and placement.token is None:
            known = replace(known, token=None)
        return placement != known

    def find(self, key: PrefixKey, replica: ReplicaId) -> Placement | None:
        return self._holders.get(key, {}).get(replica)

    def withdraw(self, lease: Lease, keys: Sequence[PrefixKey], at: Revision) -> tuple[Event, ...]:
        """One event for each of `keys` that the member holds."""
        self.require(lease)
        held = self._held[lease.replica]
        return _withdrawn([self._holders[key][lease.replica] for key in dict.fromkeys(keys) if key in held], at)

    def withdraw_stale(
        self, context: ContextId, keys: Iterable[PrefixKey], newest: Epoch, at: Revision
    ) -> tuple[Event, ...]:
        """One event for each entry of `keys` that anyone holds of the context at epoch `newest` or before."""
        held = (p for key in dict.fromkeys(keys) for p in self._holders.get(key, {}).values())
        return _withdrawn([p for p in held if p.context == context and p.epoch <= newest], at)

    def lookup(self, keys: Sequence[PrefixKey]) -> dict[PrefixKey, tuple[Placement, ...]]:
        """Placements of each of `keys` that somebody holds."""
        return {key: tuple(holders.values()) for key in keys if (holders := self._holders.get(key))}

    def held_by(self, replica: ReplicaId) -> tuple[Placement, ...]:
        """What one member holds."""
        return tuple(self._holders[key][replica] for key in self._held.get(replica, ()))

    def hottest(self, count: int, is_usable: Callable[[Placement], bool]) -> tuple[Placement, ...]:
        """The hottest usable placement of each prefix, for the `count` prefixes that served most, hottest first."""
        usable = (filter(is_usable, holders.values()) for holders in self._holders.values())
        best = (max(holders, key=lambda p: p.heat, default=None) for holders in usable)
        return tuple(nlargest(count, filter(None, best), key=lambda p: p.heat))

    def is_draining(self, replica: ReplicaId) -> bool:
        return replica in self._draining

    def lease_of(self, replica: ReplicaId) -> Lease:
        """The lease of a member. Raises KeyError for a stranger."""
        return self._members[replica]

    def members(self) -> tuple[Lease, ...]:
        return tuple(self._members.values())

    def placements(self) -> Iterator[Placement]:
        for holders in self._holders.values():
            yield from holders.values()

    @property
    def num_placements(self) -> int:
        return sum(map(len, self._held.values()))

    def apply(self, event: Event) -> None:
        """Make `event` so, however often; kinds that are not about members and placements are passed over."""
        match event:
            case Event(kind=EventKind.JOINED, lease=Lease() as lease):
                self.admit(lease)
            case Event(kind=EventKind.LEFT, replica=replica):
                self._members.pop(replica, None)
                self._draining.discard(replica)
                for key in self._held.pop(replica, ()):
                    self._drop(key, replica)
            case Event(kind=EventKind.DRAINING, replica=replica):
                self.mark_draining(replica)
            case Event(kind=EventKind.ANNOUNCED, placement=Placement() as placement):
                self.place(placement)
            case Event(kind=EventKind.WITHDRAWN, placement=Placement() as placement):
                held = self._held.get(placement.replica)
                if held is not None and placement.key in held:
                    held.remove(placement.key)
                    self._drop(placement.key, placement.replica)
            case _:
                pass

    def admit(self, lease: Lease) -> None:
        """Write one member as a fact, as `apply` and a restored snapshot do."""
        self._members[lease.replica] = lease
        self._held.setdefault(lease.replica, set())

    def mark_draining(self, replica: ReplicaId) -> None:
        """Write one draining member as a fact, as `apply` and a restored snapshot do."""
        self._draining.add(replica)

    def place(self, placement: Placement) -> None:
        """Write one placement as a fact, as `apply` and a restored snapshot do."""
        self._holders.setdefault(placement.key, {})[placement.replica] = placement
        self._held.setdefault(placement.replica, set()).add(placement.key)

    def _drop(self, key: PrefixKey, replica: ReplicaId) -> None:
        holders = self._holders[key]
        del holders[replica]
        if not holders:
            del self._holders[key]

    def check_integrity(self) -> None:
        """Raise AssertionError unless both indexes agree and every placement belongs to a member."""
        by_key = {(key, replica) for key, holders in self._holders.items() for replica in holders}
        by_replica = {(key, replica) for replica, keys in self._held.items() for key in keys}
        if by_key != by_replica:
            raise AssertionError(f"indexes differ in {by_key ^ by_replica}")
        if set(self._held) != set(self._members):
            raise AssertionError(f"placements of strangers: {set(self._held) ^ set(self._members)}")
        if not all(self._holders.values()):
            raise AssertionError("a key without holders is still listed")

    def __repr__(self) -> str:
        return f"<Directory [{len(self._members)} members, {len(self._holders)} prefixes, {self.num_placements} held]>"


def _withdrawn(placements: Iterable[Placement], at: Revision) -> tuple[Event, ...]:
    return tuple(Event(Revision(at + i), EventKind.WITHDRAWN, p.replica, placement=p) for i, p in enumerate(placements))
