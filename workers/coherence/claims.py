"""Claim builds at the cache service, extend their leases, and give them back, however their claims ended."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from cache_service.client.client import CacheClient
from cache_service.core.events import Event, Granted
from cache_service.core.types import FIRST_EPOCH, Build, PrefixKey, ReplicaId, Snapshot
from cache_service.errors import CacheServiceError, FencedToken
from workers.coherence.inventory import Inventory
from workers.coherence.sync import PrefixSync
from workers.coherence.view import ClusterView

logger = logging.getLogger(__name__)

EXTENSIONS_PER_LEASE = 3


class BuildClaims:
    """Holds the claims of this replica. Runs in the event loop that also updates `view`.

    A claim that was cancelled, or that got no answer in time, may have been granted all the same. The watch brings
    every grant: a build of this replica that no claim knows is released.
    """

    def __init__(
        self,
        replica: ReplicaId,
        ttl_s: float,
        *,
        client: CacheClient,
        sync: PrefixSync,
        inventory: Inventory,
        view: ClusterView,
    ) -> None:
        """Claim builds for `ttl_s` seconds, and extend them in time."""
        self._replica, self._ttl_s = replica, ttl_s
        self._client, self._sync, self._inventory, self._view = client, sync, inventory, view
        self._unanswered: Counter[PrefixKey] = Counter()
        self._extending: dict[PrefixKey, asyncio.Task[None]] = {}
        self._releasing: set[asyncio.Task[None]] = set()

    async def claim(self, key: PrefixKey) -> Build | None:
        """Ask to be the only builder, and return the build in progress: ours, or another replica's.

        Returns None if the service grants none. The build of a stale entry isn't claimed: that entry won't be
        announced, so no other replica should wait for it.
        """
        lease = self._sync.lease
        if lease is None or self._view.is_stale(key):
            return None
        content_of = self._view.context_of(key)
        context, epoch = (content_of.context, content_of.epoch) if content_of else (None, FIRST_EPOCH)
        self._unanswered[key] += 1
        build: Build | None = None
        try:
            build = await self._client.acquire(lease, key, self._ttl_s, epoch=epoch, context=context)
        except CacheServiceError:
            return None
        finally:
            self._unanswered[key] -= 1
            if build is None and (granted := self._view.build(key, epoch)) is not None:
                self._release_unknown(granted)
        if build.replica == self._replica:
            self._inventory.add_build(build)
            self.stop_extending(key)
            self._extending[key] = self._begin(self._extend(build))
        return build

    def take(self, update: Snapshot | Event) -> None:
        """Release the builds that the watch lists as granted to this replica without its knowledge."""
        if isinstance(update, Granted):
            self._release_unknown(update.build)
        elif isinstance(update, Snapshot):
            for build in update.builds:
                self._release_unknown(build)

    def stop_extending(self, key: PrefixKey) -> None:
        """Let the build of `key` end without a renewal: its entry is live, or is built no more."""
        if task := self._extending.pop(key, None):
            task.cancel()

    def give_up(self, key: PrefixKey) -> None:
        """Release the build of `key`, if this replica has it."""
        self.stop_extending(key)
        if build := self._inventory.remove_build(key):
            self._release(build)

    async def close(self) -> None:
        """Cancel all that is in progress."""
        tasks = [*self._extending.values(), *self._releasing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _release_unknown(self, build: Build) -> None:
        """Release a build of this replica, unless the answer to its claim has arrived, or is still awaited."""
        if build.replica != self._replica or self._unanswered[build.key]:
            return
        if self._inventory.find_build(build.key) != build:
            self._release(build)

    def _release(self, build: Build) -> None:
        task = self._begin(self._end_build(build))
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def _end_build(self, build: Build) -> None:
        if lease := self._sync.lease:
            try:
                await self._client.release(lease, build)
            except FencedToken:
                pass  # it has ended already: the watch was behind
            except CacheServiceError as error:
                logger.info("an abandoned build could not be released; its lease will lapse: %s", error)

    async def _extend(self, build: Build) -> None:
        """Extend the build's lease until the entry is live, or the build has ended otherwise."""
        while (lease := self._sync.lease) is not None:
            await asyncio.sleep(build.ttl_s / EXTENSIONS_PER_LEASE)
            try:
                await self._client.extend(lease, build)
            except CacheServiceError as error:
                logger.warning("a build goes on although its lease could not be extended: %s", error)
                return

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.create_task(work)
