"""The service without its wire: one store, counted, and the tick that lets lapsed members go."""

from __future__ import annotations

import logging

from cache_service.errors import LeaseRefused
from cache_service.metrics import Metrics
from cache_service.store.base import Decision, Store
from cache_service.types import Event, Lease, Revision

_log = logging.getLogger(__name__)


class CacheService:
    """What the servicers share."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.metrics = Metrics(store)

    @property
    def revision(self) -> Revision:
        return self.store.state.revision

    async def commit(self, decide: Decision) -> tuple[Event, ...]:
        events = tuple(await self.store.commit(decide))
        for event in events:
            self.metrics.events.labels(event.kind.value).inc()
        return events

    async def keep_alive(self, lease: Lease) -> Lease:
        """Put the lease's deadline off. Raises LeaseRefused once it has ended."""
        granted = self.store.state.directory.require(lease)
        if not await self.store.renew(granted):
            raise LeaseRefused(f"lease {lease.id} of replica {lease.replica!r} has lapsed: register again")
        return granted

    async def tick(self) -> None:
        """Let members go whose lease has lapsed."""
        lapsed = await self.store.lapsed()
        if not lapsed:
            return
        for event in await self.commit(lambda state, at: state.directory.expire(lapsed, at)):
            _log.info("replica %s left: its lease lapsed", event.replica)
