"""Store the log in this process: it ends with the process, and is as fast as a dict."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

from cache_service.core.events import Event
from cache_service.core.facts import Change, Put, lease_of
from cache_service.core.leases import Leases
from cache_service.core.state import State
from cache_service.core.types import Lease, LeaseId
from cache_service.errors import CacheServiceUnavailable
from cache_service.store.base import Decision
from cache_service.store.feed import Feed


class MemoryStore:
    """Serves one process. No method awaits anything, so a decision and its events are atomic in the event loop."""

    may_evict = False

    def __init__(self, *, clock: Callable[[], float], history: int = 65_536) -> None:
        """`clock` returns seconds that never go back; `history` events are kept for watchers that lag."""
        self._clock = clock
        self._leases = Leases()
        self._closed = False
        self.incarnation = uuid.uuid4().hex
        self.state = State()
        self.feed = Feed(history)

    async def append(self, decide: Decision) -> Sequence[Event]:
        if self._closed:
            raise CacheServiceUnavailable("the store is closed")
        events = decide(self.state, self.state.next_revision)
        for event in events:
            for change in self.state.apply(event):
                self._update_lease(change)
        if events:
            self.feed.append(events)
        return events

    def _update_lease(self, change: Change) -> None:
        """Begin or end the lease of a member or build that `change` adds or removes."""
        lease = lease_of(change.fact)
        if lease is None:
            return
        if isinstance(change, Put):
            self._leases.grant(lease.id, lease.ttl_s, self._clock())
        else:
            self._leases.revoke(lease.id)

    async def sync(self) -> None:
        if self._closed:
            raise CacheServiceUnavailable("the store is closed")

    async def renew(self, lease: Lease) -> bool:
        return self._leases.renew(lease.id, lease.ttl_s, self._clock())

    async def lapsed(self) -> frozenset[LeaseId]:
        return self._leases.lapsed(self._clock())

    async def close(self) -> None:
        self._closed = True
        self.feed.close()

    def __repr__(self) -> str:
        return f"<MemoryStore {self.incarnation[:8]} {self.state} [{len(self._leases)} leases]>"
