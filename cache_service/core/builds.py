"""Who may build which entry, and how deep entries may be reused. Pure.

One member at a time builds the entry of (key, epoch). Its token is the revision of the grant, so it rises at each
grant: a member that slept through the end of its lease comes back with a token that no longer counts.

    free --acquire--> granted(token) --complete(token)--> free    BUILT, with the placement
                        |  release, lapse, holder leaves,
                        +--the content has a newer epoch--> free    RELEASED
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from cache_service.core.bounds import require_key
from cache_service.core.types import (
    Build,
    ContextId,
    DepthLimit,
    Epoch,
    Event,
    EventKind,
    FencingToken,
    Lease,
    LeaseId,
    PrefixKey,
    ReplicaId,
    Revision,
)
from cache_service.errors import FencedToken, InvalidRequest

MIN_TTL_S = 0.1
MAX_TTL_S = 600.0


class Builds:
    """The builds under way, one for each (key, epoch)."""

    def __init__(self) -> None:
        self._builds: dict[tuple[PrefixKey, Epoch], Build] = {}

    def acquire(
        self, lease: Lease, key: PrefixKey, epoch: Epoch, context: ContextId | None, ttl_s: float, at: Revision
    ) -> tuple[Event, ...]:
        """Grant the build to the member; none where a build is under way, its own included: see `under_way`."""
        if not MIN_TTL_S <= ttl_s <= MAX_TTL_S:
            raise InvalidRequest(f"ttl_s of a build must lie within {MIN_TTL_S} and {MAX_TTL_S} seconds, got {ttl_s}")
        require_key(key)
        if context is None and epoch != 0:
            raise InvalidRequest(f"a prefix outside of any context stays at epoch 0, got {epoch}")
        if (key, epoch) in self._builds:
            return ()
        build = Build(key, epoch, lease.replica, FencingToken(at), ttl_s, context)
        return (Event(at, EventKind.GRANTED, lease.replica, build=build),)

    def get(self, key: PrefixKey, epoch: Epoch) -> Build | None:
        return self._builds.get((key, epoch))

    def under_way(self, key: PrefixKey, epoch: Epoch) -> Build:
        """Raises KeyError where nobody builds."""
        return self._builds[key, epoch]

    def require(self, replica: ReplicaId, key: PrefixKey, epoch: Epoch, token: FencingToken) -> Build:
        """The member's build under way, with this very token. Raises FencedToken."""
        build = self._builds.get((key, epoch))
        if build is None:
            raise FencedToken(f"token {token}: this build has ended; acquire it again")
        if (build.token, build.replica) != (token, replica):
            raise FencedToken(f"token {token}: this build was granted anew to {build.replica!r} under {build.token}")
        return build

    def finish(self, build: Build, at: Revision) -> tuple[Event, ...]:
        return (Event(at, EventKind.BUILT, build.replica, build=build),)

    def release(self, builds: Iterable[Build], at: Revision) -> tuple[Event, ...]:
        """End `builds` without an entry."""
        return tuple(
            Event(Revision(at + i), EventKind.RELEASED, build.replica, build=build) for i, build in enumerate(builds)
        )

    def of(self, replicas: Collection[ReplicaId]) -> list[Build]:
        return [build for build in self._builds.values() if build.replica in replicas]

    def under(self, leases: Collection[LeaseId]) -> list[Build]:
        return [build for build in self._builds.values() if build.lease.id in leases]

    def before(self, context: ContextId, epoch: Epoch | None) -> list[Build]:
        """Builds of the context for epochs before `epoch`; None: for all."""
        builds = (build for build in self._builds.values() if build.context == context)
        return [build for build in builds if epoch is None or build.epoch < epoch]

    def all(self) -> tuple[Build, ...]:
        return tuple(self._builds.values())

    def restore(self, build: Build) -> None:
        """Write one build as a fact."""
        self._builds[build.key, build.epoch] = build

    def apply(self, event: Event) -> None:
        """Make `event` so; kinds that are not about builds are passed over."""
        if event.build is None:
            return
        if event.kind is EventKind.GRANTED:
            self.restore(event.build)
        else:
            del self._builds[event.build.key, event.build.epoch]

    def __len__(self) -> int:
        return len(self._builds)


class Depths:
    """How deep each prefix may be reused, by ratio bucket, where drift was measured."""

    def __init__(self) -> None:
        self._limits: dict[PrefixKey, dict[int, DepthLimit]] = {}

    def report(self, limits: Iterable[DepthLimit], replica: ReplicaId, at: Revision) -> tuple[Event, ...]:
        """One event for each limit that is lower than the known one, or judged by a newer profile."""
        lowered: dict[tuple[PrefixKey, int], DepthLimit] = {}
        for limit in limits:
            require_key(limit.key)
            if limit.depth < 0 or not 0 <= limit.bucket <= 100:
                raise InvalidRequest(f"a depth must not be negative and a bucket within 0 and 100, got {limit}")
            place = (limit.key, limit.bucket)
            known = lowered.get(place) or self._limits.get(limit.key, {}).get(limit.bucket)
            if known is None or (limit.profile, -limit.depth) > (known.profile, -known.depth):
                lowered[place] = limit
        return tuple(
            Event(Revision(at + i), EventKind.LIMITED, replica, limit=limit) for i, limit in enumerate(lowered.values())
        )

    def lookup(self, keys: Iterable[PrefixKey]) -> tuple[DepthLimit, ...]:
        return tuple(limit for key in keys for limit in self._limits.get(key, {}).values())

    def all(self) -> tuple[DepthLimit, ...]:
        return self.lookup(self._limits)

    def restore(self, limit: DepthLimit) -> None:
        """Write one limit as a fact."""
        self._limits.setdefault(limit.key, {})[limit.bucket] = limit

    def apply(self, event: Event) -> None:
        """Make `event` so; kinds that are not about depths are passed over."""
        if event.limit is not None:
            self.restore(event.limit)
