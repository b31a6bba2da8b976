"""Keeps the cache service's knowledge of this replica true: its membership, its entries, the drift that it found.

Reconciles instead of replaying: `held` is what is true here, `announced` what the service was told under the present
lease. After an outage, or a service that forgot this replica, a new lease begins with nothing announced.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from cache_service.client.client import CacheClient
from cache_service.core.types import FIRST_EPOCH, Build, DepthLimit, Lease, Placement, PrefixKey, ReplicaId
from cache_service.errors import (
    CacheServiceError,
    FencedToken,
    InvalidRequest,
    LeaseRefused,
    StaleEpoch,
    UnknownContext,
)
from workers.bicache.entry import LiveEntry, Report
from workers.coherence.tally import Tally
from workers.coherence.view import ClusterView

logger = logging.getLogger(__name__)

KEEP_ALIVES_PER_TTL = 3
FAREWELL_TIMEOUT_S = 2.0
OUT_OF_DATE = (StaleEpoch, UnknownContext, InvalidRequest)
"""What the service says of the content of a context that has moved on, or is gone."""


class PrefixSync:
    """Keeps the service's view of `replica` equal to what it holds. Lives in one event loop."""

    def __init__(
        self,
        client: CacheClient,
        replica: ReplicaId,
        ttl_s: float,
        view: ClusterView,
        depth_table_version: int,
        tally: Tally,
    ) -> None:
        self._client, self._replica, self._ttl_s = client, replica, ttl_s
        self._view, self._depth_table_version, self._tally = view, depth_table_version, tally
        self._held: dict[PrefixKey, LiveEntry] = {}
        self._announced: dict[PrefixKey, Placement] = {}
        self._reported: set[DepthLimit] = set()
        self._builds: dict[PrefixKey, Build] = {}
        self._lease: Lease | None = None
        self.joined = asyncio.Event()
        """Set once the service has known this replica."""
        self._wake = asyncio.Event()

    @property
    def lease(self) -> Lease | None:
        """None while the service doesn't know this replica."""
        return self._lease

    def held(self, key: PrefixKey) -> LiveEntry | None:
        return self._held.get(key)

    def apply(self, report: Report) -> None:
        """Take in which entries came and went; the service hears of it soon."""
        for key in report.gone:
            self._held.pop(key, None)
        for live in report.live:
            self._held[live.key] = live
        self.wake()

    def owns(self, build: Build) -> None:
        """The entry of `build`, once it is live, is announced under its token."""
        self._builds[build.key] = build

    def disown(self, key: PrefixKey) -> Build | None:
        """The build of `key` that was under way here, which it is no longer."""
        return self._builds.pop(key, None)

    def wake(self) -> None:
        """Look again at what there is to tell."""
        self._wake.set()

    async def run(self) -> None:
        """Reconcile until cancelled; a service that is away is tried again with jittered back-off."""
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
        """Take no new work, if the service can be told."""
        await self._bid_farewell(self._client.drain)

    async def leave(self) -> None:
        """Stop being a member, if the service can be told."""
        await self._bid_farewell(self._client.leave)

    async def _bid_farewell(self, call: Callable[[Lease], Awaitable[object]]) -> None:
        with suppress(CacheServiceError, TimeoutError):
            if self._lease is not None:
                async with asyncio.timeout(FAREWELL_TIMEOUT_S):
                    await call(self._lease)

    async def _reconcile(self) -> None:
        self._wake.clear()
        try:
            if self._lease is None:
                self._announced.clear()
                self._reported.clear()
                self._builds.clear()
                self._lease = await self._client.register(self._replica, self._ttl_s)
                self.joined.set()
            else:
                await self._client.keep_alive(self._lease)
            await self._push_changes(self._lease)
        except LeaseRefused:
            self._lease = None
            raise

    async def _push_changes(self, lease: Lease) -> None:
        """A stale entry is not announced: only who asks for its very key, here, may still read it."""
        told = {key: self._placement(live) for key, live in self._held.items() if not self._view.is_stale(key)}
        gone = [key for key in self._announced if key not in told]
        if gone:
            await self._client.withdraw(lease, gone)
            for key in gone:
                del self._announced[key]
        new = [placement for key, placement in told.items() if self._announced.get(key) != placement]
        await self._announce(lease, [placement for placement in new if not await self._complete(lease, placement)])
        await self._report_drift(lease)

    async def _complete(self, lease: Lease, placement: Placement) -> bool:
        """End our build of the entry with its announcement; False where there is none, or no longer.

        An entry is found by what it is made of, so one whose build was fenced off is no worse: it is announced like
        any other, which the service refuses where it is of an old epoch.
        """
        build = self._builds.get(placement.key)
        if build is None:
            return False
        try:
            await self._client.complete(lease, build, placement)
        except (FencedToken, *OUT_OF_DATE):
            self.disown(placement.key)
            self._tally.fenced += 1
            return False
        self.disown(placement.key)
        self._announced[placement.key] = placement
        return True

    async def _announce(self, lease: Lease, placements: list[Placement]) -> None:
        """All at once; where one is refused as out of date, one by one. What is refused is not tried again as it is."""
        if not placements:
            return
        try:
            await self._client.announce(lease, placements)
        except OUT_OF_DATE:
            if len(placements) > 1:
                for placement in placements:
                    await self._announce(lease, [placement])
                return
            logger.info("an entry of a context that has moved on is not announced")
        self._announced.update((placement.key, placement) for placement in placements)

    async def _report_drift(self, lease: Lease) -> None:
        found = {
            DepthLimit(live.key, bucket, depth, self._depth_table_version)
            for live in self._held.values()
            for bucket, depth in live.drifted
        }
        if new := found - self._reported:
            await self._client.report_drift(lease, tuple(new))
            self._reported |= new
            self._tally.drift_reports += len(new)

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
    if state.attempt_number == 1 and state.outcome is not None:
        logger.warning("the cache service is out of reach, going on without it: %s", state.outcome.exception())
