"""Keep the cache service up to date about this replica: its membership, its entries, and the drift that it found.

It reconciles instead of replaying: the inventory says what is true here, and what was announced under the present
lease. After an outage, or once the service has forgotten this replica, a new lease begins with no announcements.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from cache_service.client.client import CacheClient
from cache_service.core.events import Announced, Event
from cache_service.core.types import FIRST_EPOCH, DepthLimit, DepthTable, Lease, Placement, ReplicaId, Snapshot
from cache_service.errors import (
    CacheServiceError,
    FencedToken,
    InvalidRequest,
    LeaseRefused,
    StaleEpoch,
    UnknownContext,
)
from workers.bicache.entry_report import EntryReport, LiveEntry
from workers.coherence.inventory import Inventory
from workers.coherence.tally import Tally
from workers.coherence.view import ClusterView

logger = logging.getLogger(__name__)

KEEP_ALIVES_PER_TTL = 3
FAREWELL_TIMEOUT_S = 2.0
OUT_OF_DATE_ERRORS = (StaleEpoch, UnknownContext, InvalidRequest)
"""The service's errors about the content of a context that has a newer epoch, or is gone."""


class PrefixSync:
    """Keeps the service's view of `replica` equal to its inventory. Runs in one event loop."""

    def __init__(
        self,
        client: CacheClient,
        replica: ReplicaId,
        ttl_s: float,
        view: ClusterView,
        inventory: Inventory,
        depth_table: DepthTable,
        tally: Tally,
    ) -> None:
        self._client, self._replica, self._ttl_s = client, replica, ttl_s
        self._view, self._inventory, self._tally = view, inventory, tally
        self._depth_table = depth_table
        self._lease: Lease | None = None
        self._registering: asyncio.Task[Lease] | None = None
        self.joined = asyncio.Event()
        """Set once the service has registered this replica."""
        self._wake = asyncio.Event()

    @property
    def lease(self) -> Lease | None:
        """Return the present lease; None while the service doesn't know this replica."""
        return self._lease

    def apply(self, report: EntryReport) -> None:
        """Take changes into the inventory, and push them to the service soon."""
        self._inventory.apply(report)
        self.wake()

    def take(self, update: Snapshot | Event) -> None:
        """Withdraw what the watch lists for this replica and is not here: a late copy of a call may have listed it."""
        if isinstance(update, Snapshot):
            listed = [placement.key for placement in self._view.held_by(self._replica)]
        elif isinstance(update, Announced) and update.replica == self._replica:
            listed = [update.placement.key]
        else:
            return
        if absent := [key for key in listed if self._inventory.find_live(key) is None]:
            self._inventory.mark_listed(absent)
            self.wake()

    def wake(self) -> None:
        """Reconcile now instead of at the next keep-alive."""
        self._wake.set()

    async def run(self) -> None:
        """Reconcile until cancelled. Retry with jittered back-off while the service is unreachable."""
        period_s = self._ttl_s / KEEP_ALIVES_PER_TTL
        reconciling = AsyncRetrying(
            retry=retry_if_exception_type(CacheServiceError),
            wait=wait_random_exponential(multiplier=0.05, max=period_s),
            before_sleep=log_first_failure,
        )
        while True:
            await reconciling(self._reconcile)
            with suppress(TimeoutError):
                async with asyncio.timeout(period_s):
                    await self._wake.wait()

    async def drain(self) -> None:
        """Ask the service to route no new work here, if it is reachable."""
        await self._bid_farewell(self._client.drain)

    async def leave(self) -> None:
        """Leave the cluster, if the service is reachable."""
        await self._bid_farewell(self._client.leave)

    async def _register(self) -> Lease:
        """Register, to the end even if the caller is cancelled: `leave` must know the lease."""
        self._registering = asyncio.create_task(
            self._client.register(self._replica, self._ttl_s, depth_table=self._depth_table)
        )
        return await asyncio.shield(self._registering)

    async def _bid_farewell(self, call: Callable[[Lease], Awaitable[object]]) -> None:
        with suppress(CacheServiceError, TimeoutError):
            async with asyncio.timeout(FAREWELL_TIMEOUT_S):
                if self._lease is None and self._registering is not None:
                    self._lease = await self._registering
                if self._lease is not None:
                    await call(self._lease)

    async def _reconcile(self) -> None:
        self._wake.clear()
        try:
            if self._lease is None:
                self._inventory.begin_lease()
                self._lease = await self._register()
                self.joined.set()
            else:
                await self._client.keep_alive(self._lease)
            await self._push_changes(self._lease)
        except LeaseRefused:
            self._lease = None
            raise

    async def _push_changes(self, lease: Lease) -> None:
        """Withdraw, announce and report what differs from what the service knows.

        A stale entry is not announced: only requests on this replica for exactly its key may still read it.
        """
        live = (entry for entry in self._inventory.live_entries() if not self._view.is_stale(entry.key))
        placements = {entry.key: self._placement(entry) for entry in live}
        if gone := self._inventory.announced_except(placements):
            self._inventory.mark_uncertain(gone)
            await self._client.withdraw(lease, gone)
            self._inventory.mark_withdrawn(gone)
        new = self._inventory.unannounced(placements)
        await self._announce(lease, [placement for placement in new if not await self._complete(lease, placement)])
        await self._report_drift(lease)

    async def _complete(self, lease: Lease, placement: Placement) -> bool:
        """End our build of the entry with its announcement. Return False if no such build is in progress.

        An entry is addressed by its content, so it stays valid if its build was fenced off: it is then announced like
        any other, and the service refuses it if its epoch is old.
        """
        build = self._inventory.find_build(placement.key)
        if build is None:
            return False
        self._inventory.mark_uncertain([placement.key])
        try:
            await self._client.complete(lease, build, placement)
        except (FencedToken, *OUT_OF_DATE_ERRORS):
            self._inventory.remove_build(placement.key)
            self._tally.fenced += 1
            return False
        self._inventory.remove_build(placement.key)
        self._inventory.mark_announced([placement])
        return True

    async def _announce(self, lease: Lease, placements: list[Placement]) -> None:
        """Announce placements together; if one is refused as out of date, announce the others one by one."""
        if not placements:
            return
        self._inventory.mark_uncertain(placement.key for placement in placements)
        try:
            await self._client.announce(lease, placements)
        except OUT_OF_DATE_ERRORS:
            if len(placements) > 1:
                for placement in placements:
                    await self._announce(lease, [placement])
                return
            logger.info("an entry of a context's older epoch is not announced")
        self._inventory.mark_announced(placements)

    async def _report_drift(self, lease: Lease) -> None:
        """Report the drift of announced entries; the service keeps limits only of those."""
        found = {
            DepthLimit(live.key, bucket, depth, self._depth_table.version)
            for live in self._inventory.live_entries()
            if self._inventory.is_announced(live.key)
            for bucket, depth in live.drifted
        }
        await self._report(lease, tuple(self._inventory.unreported(found)))

    async def _report(self, lease: Lease, limits: tuple[DepthLimit, ...]) -> None:
        """Report limits together; if one is refused, report the others one by one."""
        if not limits:
            return
        try:
            await self._client.report_drift(lease, limits)
            self._tally.drift_reports += len(limits)
        except InvalidRequest as error:
            if len(limits) > 1:
                for limit in limits:
                    await self._report(lease, (limit,))
                return
            logger.info("a report of drift is refused, and counts only here: %s", error)
        self._inventory.mark_reported(limits)

    def _placement(self, live: LiveEntry) -> Placement:
        content_of = self._view.context_of(live.key)
        return Placement(
            key=live.key,
            replica=self._replica,
            num_tokens=live.num_tokens,
            safe_depth=live.safe_depth,
            size_bytes=live.size_bytes,
            epoch=content_of.epoch if content_of else FIRST_EPOCH,
            context=content_of.context if content_of else None,
            heat=live.heat,
        )


def log_first_failure(state: RetryCallState) -> None:
    """Warn once of an outage, not at every attempt."""
    if state.attempt_number == 1 and state.outcome is not None:
        logger.warning(
            "the cache service is out of reach; this replica goes on without it: %s", state.outcome.exception()
        )
