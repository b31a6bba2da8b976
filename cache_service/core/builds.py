"""Decide which member may build which entry. Pure.

One member at a time builds the entry of (key, epoch). Its token is the revision of the grant, so it rises at each
grant: a member that was paused until after its lease ended returns with a token that is no longer valid.

    free --acquire--> granted(token) --complete(token)--> free    Built, with the placement
                        |  release, lapse, holder leaves,
                        +--the content has a newer epoch--> free    Released
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from cache_service.core.bounds import require_key
from cache_service.core.events import Built, Granted, Released
from cache_service.core.types import (
    Build,
    ContextId,
    Epoch,
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
    """Holds the builds in progress, one for each (key, epoch)."""

    def __init__(self) -> None:
        self._builds: dict[tuple[PrefixKey, Epoch], Build] = {}

    def acquire(
        self, lease: Lease, key: PrefixKey, epoch: Epoch, context: ContextId | None, ttl_s: float, at: Revision
    ) -> tuple[Granted, ...]:
        """Grant the build to the member; return no event if one is in progress, even its own: see `in_progress`."""
        if not MIN_TTL_S <= ttl_s <= MAX_TTL_S:
            raise InvalidRequest(f"ttl_s of a build must lie within {MIN_TTL_S} and {MAX_TTL_S} seconds, got {ttl_s}")
        require_key(key)
        if context is None and epoch != 0:
            raise InvalidRequest(f"a prefix without a context stays at epoch 0, got {epoch}")
        if (key, epoch) in self._builds:
            return ()
        return (Granted(at, Build(key, epoch, lease.replica, FencingToken(at), ttl_s, context)),)

    def get(self, key: PrefixKey, epoch: Epoch) -> Build | None:
        return self._builds.get((key, epoch))

    def in_progress(self, key: PrefixKey, epoch: Epoch) -> Build:
        """Return the build of (key, epoch) in progress. Raises KeyError if there is none."""
        return self._builds[key, epoch]

    def require(self, replica: ReplicaId, key: PrefixKey, epoch: Epoch, token: FencingToken) -> Build:
        """Return the member's build in progress with exactly this token. Raises FencedToken."""
        build = self._builds.get((key, epoch))
        if build is None:
            raise FencedToken(f"token {token}: this build has ended; acquire it again")
        if (build.token, build.replica) != (token, replica):
            raise FencedToken(f"token {token}: this build was granted again, to {build.replica!r} under {build.token}")
        return build

    def finish(self, build: Build, at: Revision) -> tuple[Built, ...]:
        """Return the event that ends `build` with an entry."""
        return (Built(at, build),)

    def release(self, builds: Iterable[Build], at: Revision) -> tuple[Released, ...]:
        """Return the events that end `builds` without an entry."""
        return tuple(Released(Revision(at + i), build) for i, build in enumerate(builds))

    def held_by_replicas(self, replicas: Collection[ReplicaId]) -> list[Build]:
        """Return the builds of the members `replicas`."""
        return [build for build in self._builds.values() if build.replica in replicas]

    def with_leases(self, leases: Collection[LeaseId]) -> list[Build]:
        """Return the builds that depend on one of `leases`."""
        return [build for build in self._builds.values() if build.lease.id in leases]

    def before_epoch(self, context: ContextId, epoch: Epoch | None) -> list[Build]:
        """Return the builds of the context for epochs before `epoch`, or for all epochs if that is None."""
        builds = (build for build in self._builds.values() if build.context == context)
        return [build for build in builds if epoch is None or build.epoch < epoch]

    def all(self) -> tuple[Build, ...]:
        return tuple(self._builds.values())

    def put(self, build: Build) -> None:
        self._builds[build.key, build.epoch] = build

    def drop(self, build: Build) -> None:
        del self._builds[build.key, build.epoch]

    def __len__(self) -> int:
        return len(self._builds)
