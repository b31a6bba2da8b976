"""The one bridge to the cache service: tells it which entries this replica holds, and keeps telling it.

Reconciles instead of replaying: `held` is what is true here, `announced` what the service was told under the present
lease. After an outage, or a service that forgot this replica, a new lease begins with nothing announced.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from cache_service.client import CacheClient
from cache_service.errors import CacheServiceError, LeaseRefused
from cache_service.types import Lease, Placement, PrefixKey, ReplicaId
from workers.bicache.entry import Changes, PrefixEntry

logger = logging.getLogger(__name__)

KEEP_ALIVES_PER_TTL = 3
LEAVE_TIMEOUT_S = 2.0


class PrefixSync:
    """Keeps the service's view of `replica` equal to what it holds. Lives in one event loop."""

    def __init__(self, client: CacheClient, replica: ReplicaId, ttl_s: float) -> None:
        self._client, self._replica, self._ttl_s = client, replica, ttl_s
        self._held: dict[PrefixKey, Placement] = {}
        self._announced: dict[PrefixKey, Placement] = {}
        self._lease: Lease | None = None
        self._wake = asyncio.Event()

    def apply(self, changes: Changes) -> None:
        """Take in which entries came and went; the service hears of it soon."""
        for key in changes.gone:
            self._held.pop(key, None)
        for entry in changes.built:
            self._held[entry.key] = placement_of(entry, self._replica)
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
                await asyncio.wait_for(self._wake.wait(), period_s)

    async def leave(self) -> None:
        """Stop being a member, if the service can be told."""
        with suppress(CacheServiceError, TimeoutError):
            if self._lease is not None:
                await asyncio.wait_for(self._client.leave(self._lease), LEAVE_TIMEOUT_S)

    async def _reconcile(self) -> None:
        self._wake.clear()
        try:
            if self._lease is None:
                self._announced.clear()
                self._lease = await self._client.register(self._replica, self._ttl_s)
            else:
                await self._client.keep_alive(self._lease)
            await self._tell(self._lease)
        except LeaseRefused:
            self._lease = None
            raise

    async def _tell(self, lease: Lease) -> None:
        gone = [key for key in self._announced if key not in self._held]
        if gone:
            await self._client.withdraw(lease, gone)
            for key in gone:
                del self._announced[key]
        new = [held for key, held in self._held.items() if self._announced.get(key) != held]
        if new:
            await self._client.announce(lease, new)
            self._announced.update((placement.key, placement) for placement in new)


def placement_of(entry: PrefixEntry, replica: ReplicaId) -> Placement:
    return Placement(
        key=entry.key,
        replica=replica,
        num_tokens=entry.layout.num_tokens,
        safe_depth=entry.safe_depth,
        size_bytes=entry.size_bytes,
    )


def log_first_failure(state: RetryCallState) -> None:
    if state.attempt_number == 1 and state.outcome is not None:
        logger.warning("the cache service is out of reach, going on without it: %s", state.outcome.exception())


class SyncThread:
    """A `PrefixSync` in an event loop and thread of its own, so that neither engine nor requests ever wait for it."""

    def __init__(self, target: str, replica: ReplicaId, ttl_s: float) -> None:
        self._client = CacheClient(target)
        self._sync = PrefixSync(self._client, replica, ttl_s)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="prefix-sync", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the service and end the thread."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def apply(self, changes: Changes) -> None:
        """From any thread; returns at once."""
        self._loop.call_soon_threadsafe(self._sync.apply, changes)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        async with self._client:
            running = asyncio.create_task(self._sync.run())
            await self._stop.wait()
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            await self._sync.leave()
