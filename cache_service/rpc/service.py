"""Carry out calls on one store, independently of gRPC, and end lapsed leases periodically."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable

from cache_service.core.cursor import Update, batch_of, parts_of
from cache_service.core.events import Deleted, Event, Granted, Left, Released
from cache_service.core.quotas import UNBOUNDED, ContextQuotas
from cache_service.core.types import Build, ContextId, Epoch, Lease, LeaseId, PrefixKey, Revision
from cache_service.errors import CacheServiceUnavailable, Compacted, FencedToken, LeaseRefused
from cache_service.metrics import MeasuredStore, Metrics
from cache_service.store.base import Decision, Store

_log = logging.getLogger(__name__)

EVENT_BATCH = 1024
IDLE_UPDATE_S = 5.0
"""Seconds between two updates of an idle watcher with the newest revision."""

_Position = tuple[Revision, str, Revision]
"""The revision that a watcher has reached, the store's incarnation, and the store's newest revision."""


class CacheService:
    """Carries out the calls of all servicers on one store."""

    def __init__(
        self, store: Store, quotas: ContextQuotas = UNBOUNDED, wall_clock: Callable[[], float] = time.time
    ) -> None:
        """`wall_clock` returns Unix time in seconds, by which contexts with a time to live end."""
        self.metrics = Metrics()
        self.quotas, self.wall_clock = quotas, wall_clock
        self.store: Store = MeasuredStore(store, self.metrics.store)
        self._revisions: dict[object, Revision] = {}
        self._latest: tuple[_Position, Update] | None = None
        self.metrics.add_gauges(
            {
                "revision": ("Newest revision", lambda: store.state.revision),
                "members": ("Members with a live lease", lambda: len(store.state.directory.members())),
                "placements": ("Announced placements", lambda: store.state.directory.num_placements),
                "contexts": ("Shared contexts", lambda: len(store.state.contexts)),
                "context_tokens": (
                    "Tokens of all shared contexts",
                    lambda: store.state.contexts.usage.total.num_tokens,
                ),
                "builds": ("Builds under way", lambda: len(store.state.builds)),
                "history_events": ("Events kept for watchers that lag", lambda: len(store.feed)),
                "store_may_evict": ("1 where the store may lose what it holds", lambda: store.may_evict),
                "watcher_lag_revisions": ("Changes that the slowest watcher has not been sent", self._lag),
            }
        )

    def _lag(self) -> int:
        revision = self.store.state.revision
        return max(0, revision - min(self._revisions.values(), default=revision))

    async def append(self, decide: Decision) -> tuple[Event, ...]:
        """Append the events of `decide` and count them."""
        events = tuple(await self.store.append(decide))
        for event in events:
            self.metrics.events.labels(event.kind).inc()
        return events

    async def keep_alive(self, lease: Lease) -> Lease:
        """Extend the lease by its TTL from now. Raises LeaseRefused once it has ended."""
        await self.store.sync()
        granted = self.store.state.directory.require(lease)
        if not await self.store.renew(granted):
            raise LeaseRefused(f"lease {lease.id} of replica {lease.replica!r} has lapsed: register again")
        return granted

    async def acquire(
        self, lease: Lease, key: PrefixKey, epoch: Epoch, context: ContextId | None, ttl_s: float
    ) -> Build:
        """Grant the member the build of (key, epoch), or return the build that is in progress already.

        If that is the member's own, its lease is extended.
        """
        for _ in range(2):
            events = await self.append(lambda state, at: state.acquire(lease, key, epoch, context, ttl_s, at))
            granted = next((event.build for event in events if isinstance(event, Granted)), None)
            build = granted or self.store.state.builds.in_progress(key, epoch)
            if granted or build.replica != lease.replica or await self.store.renew(build.lease):
                return build
            await self.tick()  # the member's own build has lapsed: end it, then grant it again
        raise CacheServiceUnavailable(f"build {build.token} has lapsed but can't be ended yet, try again")

    async def extend(self, lease: Lease, build: Build) -> None:
        """Extend a build's lease. Raises LeaseRefused or FencedToken if the member's or the build's has ended."""
        await self.store.sync()
        self.store.state.directory.require(lease)
        granted = self.store.state.builds.require(lease.replica, build.key, build.epoch, build.token)
        if not await self.store.renew(granted.lease):
            raise FencedToken(f"token {build.token}: this build has lapsed; acquire it again")

    async def tick(self) -> None:
        """End the members and builds of lapsed leases, and contexts whose lifetime has ended.

        It ends them one by one, so that other calls get their turn in between.
        """
        for lease in sorted(await self.store.lapsed()):
            await self._end(lease)
        for context_id in self.store.state.contexts.expired(self.wall_clock()):
            await self._expire(context_id)

    async def _expire(self, context_id: ContextId) -> None:
        """Delete the context, unless another instance has done so or it was renewed meanwhile."""
        now = self.wall_clock()
        events = await self.append(lambda state, at: state.expire_context(context_id, now, at))
        if any(isinstance(event, Deleted) for event in events):
            self.metrics.lapses.labels("context").inc()
            _log.info("context %s was deleted: its time to live has passed", context_id)

    async def _end(self, lapsed: LeaseId) -> None:
        for event in await self.append(lambda state, at: state.expire({lapsed}, at)):
            if isinstance(event, Left):
                self.metrics.lapses.labels("member").inc()
                _log.info("replica %s was removed: its lease lapsed", event.replica)
            elif isinstance(event, Released):
                self.metrics.lapses.labels("build").inc()
                _log.info("replica %s lost a build: its lease lapsed", event.replica)

    async def watch(self, after: Revision | None, incarnation: str) -> AsyncIterator[Update]:
        """Yield a snapshot if `after` is None, then all later events.

        Raises Compacted if some of them are no longer known, and CacheServiceUnavailable if the store is not
        reachable.
        """
        store, watcher = self.store, object()
        if after is None:
            await store.sync()
            incarnation, snapshot = store.incarnation, store.state.snapshot()
            for part in parts_of(snapshot):
                yield Update(incarnation, snapshot.revision, part=part)
            after = snapshot.revision
        try:
            while True:
                self._revisions[watcher] = after
                if store.incarnation != incarnation:
                    raise Compacted(f"revision {after} is of {incarnation!r}, this is {store.incarnation!r}")
                update = self._update_after(after)
                if update.events:
                    yield update
                    after = update.events[-1].revision
                    continue
                try:
                    async with asyncio.timeout(IDLE_UPDATE_S):
                        await store.feed.wait(after)
                except TimeoutError:
                    await store.sync()  # an instance without its store can't know that there were no events
                    yield Update(incarnation, after)
        finally:
            del self._revisions[watcher]

    def _update_after(self, after: Revision) -> Update:
        """Return the events that follow `after`. Watchers at the same revision share one object."""
        position = after, self.store.incarnation, self.store.state.revision
        if self._latest is None or self._latest[0] != position:
            events = batch_of(self.store.feed.read(after, EVENT_BATCH))
            self._latest = position, Update(self.store.incarnation, self.store.state.revision, events=events)
        return self._latest[1]
