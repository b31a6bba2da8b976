"""Supply awaited entries: by a copy from another replica, or by allowing the engine to build them.

Every failure falls back to a build: an entry is never awaited for longer than one wait and the fetches after it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from cache_service.client.client import CacheClient
from cache_service.client.waits import BuildWaits
from cache_service.core.types import FIRST_EPOCH, Build, PrefixKey, ReplicaId
from cache_service.errors import CacheServiceError
from workers.api import CopyRequest
from workers.bicache.copies import CopyRefusedError, EntryCopy, EntryFormat, TransferError, Transport, check_copy
from workers.bicache.entry_report import EntryReport, PendingEntry
from workers.bicache.entry_table import EngineThread, EntryCommands
from workers.coherence.estimate import CostModel, Costs
from workers.coherence.faults import TaskFaults
from workers.coherence.inventory import Inventory
from workers.coherence.sourcing import BuildAlone, Claim, Fetch, Situation, Source, Wait, choose, is_cheaper_to_fetch
from workers.coherence.sync import PrefixSync
from workers.coherence.tally import Tally
from workers.coherence.view import ClusterView
from workers.config import CoherenceConfig
from workers.errors import WorkerError

logger = logging.getLogger(__name__)

EXTENSIONS_PER_LEASE = 3


class Supplier:
    """Finds a source for each awaited entry. Runs in the event loop that also updates `view` and `waits`."""

    def __init__(
        self,
        replica: ReplicaId,
        config: CoherenceConfig,
        *,
        client: CacheClient,
        sync: PrefixSync,
        inventory: Inventory,
        view: ClusterView,
        waits: BuildWaits,
        engine: EngineThread,
        transport: Transport,
        entry_format: EntryFormat,
        costs: CostModel,
        tally: Tally,
        faults: TaskFaults,
    ) -> None:
        self._replica, self._config = replica, config
        self._client, self._sync, self._view, self._waits = client, sync, view, waits
        self._inventory = inventory
        self._engine, self._transport, self._format = engine, transport, entry_format
        self._costs, self._tally, self._faults = costs, tally, faults
        self._sourcing: dict[PrefixKey, asyncio.Task[None]] = {}
        self._extending: dict[PrefixKey, asyncio.Task[None]] = {}
        self._releasing: set[asyncio.Task[None]] = set()

    def apply(self, report: EntryReport) -> None:
        """Start and end the supply of entries after a report. Called before the inventory applies the report."""
        for key in (*report.abandoned, *report.gone):
            self._cancel(self._sourcing, key)
            self._cancel(self._extending, key)
            if build := self._inventory.remove_build(key):
                self._release(build)
        for pending in report.awaited:
            self._replace(self._sourcing, pending.key, self._supply(pending))
        for live in report.live:
            self._cancel(self._extending, live.key)
            if live.build_s is not None and self._inventory.find_live(live.key) is None:
                self._tally.built += 1
                self._costs.record_build(live.token_layers, live.build_s)

    def allow_builds(self, awaited: Iterable[PendingEntry]) -> None:
        """Let the engine build these entries."""
        keys = [pending.key for pending in awaited]
        with suppress(WorkerError):  # the engine has ended
            for key in keys:
                self._engine.call(partial(EntryCommands.allow_build, key=key))

    async def prewarm(self) -> None:
        """Copy the cluster's hottest prefixes, hottest first; one that doesn't arrive is skipped."""
        try:
            hottest = await self._client.hottest(self._config.prewarm)
        except CacheServiceError:
            return
        for placement in hottest:
            if placement.replica == self._replica or placement.heat == 0:
                continue
            copy = await self._fetch(CopyRequest(placement.replica, placement.key, None), None)
            if copy is not None and await self._adopt(copy):
                self._tally.prewarmed += 1

    async def close(self) -> None:
        """Cancel all that is in progress."""
        tasks = [*self._sourcing.values(), *self._extending.values(), *self._releasing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _supply(self, pending: PendingEntry) -> None:
        try:
            if await self._obtain_copy(pending):
                return
        except Exception as error:
            self._faults.record("supply", error)
        self.allow_builds([pending])

    async def _obtain_copy(self, pending: PendingEntry) -> bool:
        """Obtain a copy of the entry from another replica. Return False if it must be built here."""
        clock = asyncio.get_running_loop().time
        started, costs = clock(), self._cost(pending)
        confirmed: set[ReplicaId] = set()
        failed = {self._replica}
        build: Build | None = None
        while True:
            holders = (self._view.holders(pending.key) | confirmed) - failed
            match self._choose(Situation(pending.key, self._replica, holders, build, clock() - started), costs):
                case BuildAlone():
                    return False
                case Fetch(holder):
                    if await self._try_fetch(pending, holder):
                        return True
                    failed.add(holder)
                case Claim():
                    build = await self._claim(pending)
                    if build is None:
                        return False
                    if build.replica == self._replica:
                        confirmed = await self._confirmed_holders(pending.key)
                        if confirmed <= failed:
                            return False
                        build = None
                case Wait(other, timeout_s):
                    ended = await self._waits.wait_for_end(other, timeout_s)
                    self._tally.waits["ended" if ended else "given_up"] += 1
                    if not ended:
                        return False
                    build = None

    def _choose(self, situation: Situation, costs: Costs) -> Source:
        if self._sync.lease is None:
            return BuildAlone()
        if situation.holders and not is_cheaper_to_fetch(costs, self._config):
            self._costs.record_skipped_fetch()
        return choose(situation, costs, self._config)

    async def _confirmed_holders(self, key: PrefixKey) -> set[ReplicaId]:
        """Ask the service for the holders: the local view may lag behind a build that just ended."""
        try:
            found = await self._client.lookup([key])
        except CacheServiceError:
            return set()
        return {placement.replica for placement in found.get(key, ())}

    def _cost(self, pending: PendingEntry) -> Costs:
        num_bytes = self._format.body_bytes(len(pending.token_ids), max(pending.depths), pending.num_states)
        return self._costs.estimate(pending.token_layers, num_bytes)

    async def _claim(self, pending: PendingEntry) -> Build | None:
        """Ask to be the only builder, and return the build in progress: ours, or another replica's.

        Returns None if the service grants none. The build of a stale entry isn't claimed: that entry won't be
        announced, so no other replica should wait for it.
        """
        lease = self._sync.lease
        if lease is None or self._view.is_stale(pending.key):
            return None
        content_of = self._view.context_of(pending.key)
        context, epoch = (content_of.context, content_of.epoch) if content_of else (None, FIRST_EPOCH)
        ttl_s = self._config.build_lease_s
        try:
            build = await self._client.acquire(lease, pending.key, ttl_s, epoch=epoch, context=context)
        except CacheServiceError:
            return None
        if build.replica == self._replica:
            self._inventory.add_build(build)
            self._replace(self._extending, build.key, self._extend(build))
        return build

    async def _extend(self, build: Build) -> None:
        """Extend the build's lease until the entry is live, or the build has ended otherwise."""
        while (lease := self._sync.lease) is not None:
            await asyncio.sleep(build.ttl_s / EXTENSIONS_PER_LEASE)
            try:
                await self._client.extend(lease, build)
            except CacheServiceError as error:
                logger.warning("a build goes on although its lease could not be extended: %s", error)
                return

    def _release(self, build: Build) -> None:
        task = asyncio.create_task(self._end_build(build))
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def _end_build(self, build: Build) -> None:
        if lease := self._sync.lease:
            try:
                await self._client.release(lease, build)
            except CacheServiceError as error:
                logger.info("an abandoned build could not be released; its lease will lapse: %s", error)

    async def _try_fetch(self, pending: PendingEntry, holder: ReplicaId) -> bool:
        copy = await self._fetch(CopyRequest(holder, pending.key, pending.depths), pending.token_ids)
        if copy is None or not await asyncio.wrap_future(self._engine.call(lambda entries: entries.install(copy))):
            return False
        self._tally.fetched += 1
        return True

    async def _adopt(self, copy: EntryCopy) -> bool:
        return await asyncio.wrap_future(self._engine.call(lambda entries: entries.adopt(copy)))

    async def _fetch(self, request: CopyRequest, token_ids: tuple[int, ...] | None) -> EntryCopy | None:
        """Return the holder's copy, checked. If no usable copy arrives, count the reason and return None."""
        clock = asyncio.get_running_loop().time
        started = clock()
        try:
            async with asyncio.timeout(self._config.fetch_timeout_s):
                copy = await self._transport.fetch(request)
            if copy is None:
                raise CopyRefusedError("absent", "the replica has no such entry, or not with these depths")
            await asyncio.to_thread(check_copy, copy, request, self._format, token_ids)
        except (TransferError, TimeoutError) as error:
            reason = error.reason if isinstance(error, CopyRefusedError) else "lost"
            self._tally.refused[reason] += 1
            self._costs.record_fetch(0, clock() - started)
            logger.warning("no copy of %s from %s: %s", request.key.hex()[:8], request.holder, error or "timeout")
            return None
        self._costs.record_fetch(copy.num_bytes, clock() - started)
        self._tally.fetched_bytes[copy.transport] += copy.num_bytes
        return copy

    def _replace(
        self, tasks: dict[PrefixKey, asyncio.Task[None]], key: PrefixKey, coroutine: Coroutine[Any, Any, None]
    ) -> None:
        self._cancel(tasks, key)
        tasks[key] = asyncio.create_task(coroutine)
        tasks[key].add_done_callback(lambda task: tasks.pop(key) if tasks.get(key) is task else None)

    def _cancel(self, tasks: dict[PrefixKey, asyncio.Task[None]], key: PrefixKey) -> None:
        if task := tasks.pop(key, None):
            task.cancel()
