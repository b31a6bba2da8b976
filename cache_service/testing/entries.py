"""Check what clients observe of entries and depth limits: what was announced is found, what went is not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cache_service.core.types import (
    ContextId,
    DepthLimit,
    Epoch,
    Lease,
    Placement,
    PrefixKey,
    ReplicaId,
)
from cache_service.testing.contexts import ContextHistory
from cache_service.testing.moments import Clock, Moments, Violation

_Entry = tuple[PrefixKey, ReplicaId]
NEVER = float("-inf")


@dataclass(slots=True, eq=False)
class _Holding:
    """Holds an entry that is listed for certain since `moment`, until its member sends something to the contrary."""

    placement: Placement
    moment: int


@dataclass(frozen=True, slots=True)
class _Claim:
    """Holds a limit that counts from `moment` on, for as long as `holding` does."""

    limit: DepthLimit
    holding: _Holding
    moment: int


class EntryHistory:
    """Checks the calls about entries of one history. A method raises Violation if an observation can't be true.

    A request that was sent, answered or not, may be carried out up to `strays_s` later, perhaps a second time. So an
    entry counts as listed only if nothing to the contrary can be under way any more when it is announced.
    """

    def __init__(
        self, moments: Moments, contexts: ContextHistory, *, clock: Clock, lease_clock: Clock, strays_s: float
    ) -> None:
        self._moments, self._contexts = moments, contexts
        self._clock, self._lease_clock, self._strays_s = clock, lease_clock, strays_s
        self.num_found = 0
        """Entries that had to be found, and were."""
        self.num_limits = 0
        """Limits that had to hold, and did."""
        self._safe_until: dict[ReplicaId, float] = {}
        self._unsure_until: dict[ReplicaId, float] = {}
        self._registered: dict[ReplicaId, int] = {}
        self._sent: defaultdict[ReplicaId, dict[PrefixKey, set[Placement]]] = defaultdict(dict)
        """The announcements under a replica's present lease, without tokens."""
        self._last: dict[_Entry, tuple[float, tuple[ContextId | None, Epoch]]] = {}
        self._disturbed_until: dict[_Entry, float] = {}
        self._holdings: defaultdict[PrefixKey, dict[ReplicaId, _Holding]] = defaultdict(dict)
        self._gone: dict[_Entry, int] = {}
        self._dead: dict[ReplicaId, float] = {}
        self._reported: set[DepthLimit] = set()
        self._claims: dict[tuple[PrefixKey, int], _Claim] = {}

    # Members

    def begin_register(self, replica: ReplicaId) -> int:
        """Record that a registration, or the end of one, will be sent: whenever it arrives, all entries go."""
        self._unsure_until[replica] = self._clock() + self._strays_s
        for key in self._sent[replica]:
            self._holdings[key].pop(replica, None)
        return self._moments.begin()

    def end_register(self, lease: Lease, safe_until: float) -> None:
        self._registered[lease.replica] = self._moments.now
        self._sent[lease.replica].clear()
        self.end_keep_alive(lease, safe_until)

    def end_keep_alive(self, lease: Lease, safe_until: float) -> None:
        """Record that the lease can't lapse before `safe_until`."""
        self._safe_until[lease.replica] = safe_until

    def end_leave(self, replica: ReplicaId) -> None:
        self._registered[replica] = self._moments.now
        self._sent[replica].clear()

    def died(self, replica: ReplicaId, gone_by: float) -> None:
        """Record that the replica sends nothing more; after `gone_by` it must not be listed."""
        self._dead[replica] = gone_by

    # Entries

    def begin_announce(self, placements: Iterable[Placement]) -> int:
        """Record that these entries will be announced, alone or at the end of a build."""
        now = self._clock()
        for placement in placements:
            entry, identity = (placement.key, placement.replica), (placement.context, placement.epoch)
            sent_at, before = self._last.get(entry, (NEVER, identity))
            if before != identity:
                self._disturb(entry, sent_at + self._strays_s)
            self._last[entry] = now, identity
            self._sent[placement.replica].setdefault(placement.key, set()).add(_without_token(placement))
            self._gone.pop(entry, None)
        return self._moments.begin()

    def end_announce(self, placements: Iterable[Placement]) -> None:
        """Record that the service has acknowledged the newest announcement of these entries."""
        for placement in placements:
            entry = placement.key, placement.replica
            sent_at, _ = self._last[entry]
            is_certain = sent_at >= max(
                self._disturbed_until.get(entry, NEVER), self._unsure_until.get(placement.replica, NEVER)
            )
            if is_certain and placement.replica not in self._holdings[placement.key]:
                self._holdings[placement.key][placement.replica] = _Holding(placement, self._moments.now)

    def begin_withdraw(self, replica: ReplicaId, keys: Iterable[PrefixKey]) -> int:
        for key in keys:
            self._disturb((key, replica), self._clock() + self._strays_s)
        return self._moments.begin()

    def end_withdraw(self, replica: ReplicaId, keys: Iterable[PrefixKey]) -> None:
        """Record that the service has acknowledged the newest withdrawal of these entries."""
        for key in keys:
            entry = key, replica
            sent_at, _ = self._last.get(entry, (NEVER, None))
            withdrawn_at = self._disturbed_until[entry] - self._strays_s
            if sent_at + self._strays_s <= withdrawn_at:
                self._gone[entry] = self._moments.now

    def _disturb(self, entry: _Entry, until: float) -> None:
        key, replica = entry
        self._disturbed_until[entry] = max(until, self._disturbed_until.get(entry, NEVER))
        self._holdings[key].pop(replica, None)

    def end_lookup(
        self,
        began: int,
        keys: Sequence[PrefixKey],
        found: Mapping[PrefixKey, Sequence[Placement]],
        max_staleness: int,
    ) -> None:
        """Require every entry that is listed for certain, and none that has gone, is too old, or was never sent."""
        for key in keys:
            listed = found.get(key, ())
            for placement in listed:
                self._require_listed(began, key, placement, max_staleness)
            self._require_found(began, key, {placement.replica for placement in listed}, max_staleness)

    def _require_listed(self, began: int, key: PrefixKey, placement: Placement, max_staleness: int) -> None:
        replica, now = placement.replica, self._clock()
        if now > self._dead.get(replica, now):
            raise Violation(f"{replica} is dead beyond its TTL at {now}, yet listed: {placement}")
        if placement.context is not None:
            self._contexts.require_fresh(began, placement.context, placement.epoch, max_staleness)
        if self._gone.get((key, replica), began) < began:
            raise Violation(f"{placement} is found, though its withdrawal had been acknowledged before")
        if self._registered.get(replica, began) < began:
            sent = self._sent[replica].get(key, ())
            if _without_token(placement) not in sent:
                raise Violation(f"{placement} is found, though {replica} never announced it under its present lease")

    def _require_found(self, began: int, key: PrefixKey, listed: set[ReplicaId], max_staleness: int) -> None:
        now = self._lease_clock()
        for replica, holding in self._holdings[key].items():
            placement = holding.placement
            if holding.moment >= began or now >= self._safe_until.get(replica, NEVER):
                continue
            if placement.context is not None and not self._contexts.is_surely_within(
                placement.context, placement.epoch, max_staleness
            ):
                continue
            if replica not in listed:
                raise Violation(f"{placement} is not found, though its announcement had been acknowledged before")
            self.num_found += 1

    # Depth limits

    def begin_report(self, limits: Iterable[DepthLimit]) -> int:
        self._reported.update(limits)
        return self._moments.begin()

    def end_report(self, began: int, replica: ReplicaId, limits: Iterable[DepthLimit]) -> None:
        """Record the limits that the service has acknowledged; those of entries that are surely listed must hold."""
        for limit in limits:
            holding = self._holdings[limit.key].get(replica)
            if holding is None or holding.moment >= began or holding.placement.context is not None:
                continue
            known = self._claims.get((limit.key, limit.bucket))
            if known is None or not self._holds(known) or _rank(limit) > _rank(known.limit):
                self._claims[limit.key, limit.bucket] = _Claim(limit, holding, self._moments.now)

    def end_limits(self, began: int, keys: Sequence[PrefixKey], limits: Iterable[DepthLimit]) -> None:
        """Require that limits were reported, and have neither risen nor ended while a member holds the entry."""
        found = {(limit.key, limit.bucket): limit for limit in limits}
        for limit in found.values():
            if limit not in self._reported:
                raise Violation(f"no client has reported {limit}")
        for identity, claim in self._claims.items():
            if identity[0] not in keys or claim.moment >= began or not self._holds(claim):
                continue
            seen = found.get(identity)
            if seen is None or _rank(seen) < _rank(claim.limit):
                raise Violation(f"{claim.limit} had been acknowledged before, yet the limit is {seen}")
            self.num_limits += 1

    def _holds(self, claim: _Claim) -> bool:
        replica = claim.holding.placement.replica
        is_listed = self._holdings[claim.limit.key].get(replica) is claim.holding
        return is_listed and self._lease_clock() < self._safe_until.get(replica, NEVER)


def _without_token(placement: Placement) -> Placement:
    return placement if placement.token is None else replace(placement, token=None)


def _rank(limit: DepthLimit) -> tuple[int, int]:
    """Order limits: a newer depth table counts more, and under the same one a lower depth does."""
    return limit.depth_table_version, -limit.depth
