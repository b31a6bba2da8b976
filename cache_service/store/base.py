"""Define the boundary between the pure cores and the storage of their events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from cache_service.core.events import Event
from cache_service.core.state import State
from cache_service.core.types import Lease, LeaseId, Revision
from cache_service.store.feed import Feed

Decision = Callable[[State, Revision], Sequence[Event]]
"""A function that returns events for the newest state, numbered from the given revision, or raises a refusal.
It must be pure: a store calls it again when another writer was faster."""


class Store(Protocol):
    """Keeps a log of events with compare-and-set, the state that results from them, and the leases' clock.

    Every method but `close` raises CacheServiceUnavailable when the store can't be reached in time.
    """

    @property
    def incarnation(self) -> str:
        """Return the name of this history of revisions; revisions of a history with another name are invalid."""

    @property
    def state(self) -> State:
        """Return the state at the newest revision or an earlier one: see `sync`. Callers only read it."""

    @property
    def feed(self) -> Feed:
        """Return the recent events, up to `state.revision`."""

    @property
    def may_evict(self) -> bool:
        """Return True for a store that may lose what it holds once its memory is full."""

    async def append(self, decide: Decision) -> Sequence[Event]:
        """Append atomically the events that `decide` returns for the newest state. On return `state` includes them."""

    async def sync(self) -> None:
        """Wait until `state` includes every event that was appended before this call."""

    async def renew(self, lease: Lease) -> bool:
        """Extend the lease by its `ttl_s` from now; return False if it has ended already.

        The event that grants a lease starts its first `ttl_s`.
        """

    async def lapsed(self) -> frozenset[LeaseId]:
        """Return the leases whose deadline has passed and that no event has ended yet."""

    async def close(self) -> None:
        """Close the connections and end all waits on the feed."""
