"""The one wall between the pure cores and whatever remembers their events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from cache_service.core.state import State
from cache_service.core.types import Event, Lease, LeaseId, Revision
from cache_service.store.feed import Feed

Decision = Callable[[State, Revision], Sequence[Event]]
"""What to do, given the newest state: events numbered from the given revision, or none, or a refusal raised.
It must be pure: a store calls it again when another writer was faster."""


class Store(Protocol):
    """A log of events with compare-and-set, the state that they add up to, and the leases' clock.

    Every method but `close` raises CacheServiceUnavailable when the store can't be reached in time.
    """

    @property
    def incarnation(self) -> str:
        """Names one history of revisions; another name means that no earlier revision counts."""

    @property
    def state(self) -> State:
        """The state at some revision, at or before the newest: see `sync`. For reading only."""

    @property
    def feed(self) -> Feed:
        """The recent events, up to `state.revision`."""

    async def commit(self, decide: Decision) -> Sequence[Event]:
        """Append what `decide` returns for the newest state, all or none; on return `state` includes it."""

    async def sync(self) -> None:
        """Return when `state` includes every event that was committed before this call."""

    async def renew(self, lease: Lease) -> bool:
        """Put off the lease's deadline by its `ttl_s`; False where it has ended. Leases begin with their JOINED."""

    async def lapsed(self) -> frozenset[LeaseId]:
        """Leases whose deadline has passed and that no event has ended yet."""

    async def close(self) -> None:
        """Let go of connections and end all waits on the feed."""
