"""Gets awaited entries made: by a copy from another replica, or by clearing them for the engine to build.

Whatever goes wrong ends in a build: an entry is never awaited for longer than a wait and the fetches that follow it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from cache_service.client.client import CacheClient
from cache_service.client.waits import BuildWaits
from cache_service.core.types import FIRST_EPOCH, Build, PrefixKey, ReplicaId
from cache_service.errors import CacheServiceError
from workers.api import CopyRequest
from workers.bicache.copies import CopyRefusedError, EntryCopy, EntryFormat, TransferError, Transport, check_copy
from workers.bicache.entry import PendingEntry, Report
from workers.bicache.entry_table import EngineThread
from workers.coherence.estimate import CostModel, Costs
from workers.coherence.sourcing import BuildAlone, Claim, Fetch, Situation, Source, Wait, choose, is_cheaper_to_fetch
from workers.coherence.sync import PrefixSync
from workers.coherence.tally import Tally
from workers.coherence.view import ClusterView
from workers.config import CoherenceConfig
from workers.errors import WorkerError

logger = logging.getLogger(__name__)

EXTENSIONS_PER_LEASE = 3


class Supplier:
    """Decides for each awaited entry. Lives in the event loop that also feeds `view` and `waits`."""

    def __init__(
        self,
        replica: ReplicaId,
        config: CoherenceConfig,
        *,
        client: CacheClient,
        sync: PrefixSync,
        view: ClusterView,
        waits: BuildWaits,
        entries: EngineThread,
        transport: Transport,
        layout: EntryFormat,
        costs: CostModel,
        tally: Tally,
    ) -> None:
        self._replica, self._config = replica, config
        self._client, self._sync, self._view, self._waits = client, sync, view, waits
        self._entries, self._transport, self._format = entries, transport, layout
        self._costs, self._tally = costs, tally
        self._sourcing: dict[PrefixKey, asyncio.Task[None]] = {}
        self._extending: dict[PrefixKey, asyncio.Task[None]] = {}
        self._releasing: set[asyncio.Task[None]] = set()

    def apply(self, report: Report) -> None:
        """Take in what became of the entries here, before `sync` does."""
        for key in (*report.abandoned, *report.gone):
            self._end(self._sourcing, key)
            self._end(self._extending, key)
            if build := self._sync.disown(key):
                self._release(build)
        for wanted in report.awaited:
            self._replace(self._sourcing, wanted.key, self._supply(wanted))
        for live in report.live:
            self._end(self._extending, live.key)
            if live.build_s is not None and self._sync.held(live.key) is None:
                self._tally.built += 1
                self._costs.record_build(live.token_layers, live.build_s)

    async def prewarm(self) -> None:
        """Copy the cluster's hottest prefixes, hottest first; what doesn't arrive is left."""
        try:
            hottest = await self._client.hottest(self._config.prewarm)
        except CacheServiceError:
            return
        for placement in hottest:
            if placement.replica == self._replica or placement.heat == 0:
                continue
            copy = await self._fetched(CopyRequest(placement.replica, placement.key, None), None)
            if copy is not None and await self._adopt(copy):
                self._tally.prewarmed += 1

    async def close(self) -> None:
        """End all that is under way."""
        tasks = [*self._sourcing.values(), *self._extending.values(), *self._releasing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _supply(self, wanted: PendingEntry) -> None:
        try:
            if await self._obtain_copy(wanted):
                return
        except Exception:
            logger.exception("an entry could not be coordinated; it is built")
        with suppress(WorkerError):
            self._entries.call(lambda entries: entries.allow_build(wanted.key))

    async def _obtain_copy(self, wanted: PendingEntry) -> bool:
        """True once a copy is in its place; False where the entry is to be built here."""
        clock = asyncio.get_running_loop().time
        started, costs = clock(), self._cost(wanted)
        told: set[ReplicaId] = set()
        failed = {self._replica}
        build: Build | None = None
        while True:
            holders = (self._view.holders(wanted.key) | told) - failed
            match self._choose(Situation(wanted.key, self._replica, holders, build, clock() - started), costs):
                case BuildAlone():
                    return False
                case Fetch(holder):
                    if await self._try_fetch(wanted, holder):
                        return True
                    failed.add(holder)
                case Claim():
                    build = await self._claim(wanted)
                    if build is None:
                        return False
                    if build.replica == self._replica:
                        told = await self._confirmed_holders(wanted.key)
                        if told <= failed:
                            return False
                        build = None
                case Wait(other, timeout_s):
                    ended = await self._waits.over(other, timeout_s)
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
        """Who holds the entry by the service's word: another's build may have ended just before ours was granted,
        while the view, which is behind, knew of neither.
        """
        try:
            found = await self._client.lookup([key])
        except CacheServiceError:
            return set()
        return {placement.replica for placement in found.get(key, ())}

    def _cost(self, wanted: PendingEntry) -> Costs:
        num_bytes = self._format.body_bytes(len(wanted.token_ids), max(wanted.depths), wanted.num_states)
        return self._costs.of(wanted.token_layers, num_bytes)

    async def _claim(self, wanted: PendingEntry) -> Build | None:
        """The build under way: ours, or another's; None where the service grants none. That of a stale entry isn't
        claimed: nobody would be told of the entry, so nobody may wait for it.
        """
        lease = self._sync.lease
        if lease is None or self._view.is_stale(wanted.key):
            return None
        content_of = self._view.context_of(wanted.key)
        context, epoch = (content_of.context, content_of.epoch) if content_of else (None, FIRST_EPOCH)
        ttl_s = self._config.build_lease_s
        try:
            build = await self._client.acquire(lease, wanted.key, ttl_s, epoch=epoch, context=context)
        except CacheServiceError:
            return None
        if build.replica == self._replica:
            self._sync.owns(build)
            self._replace(self._extending, build.key, self._extend(build))
        return build

    async def _extend(self, build: Build) -> None:
        """Signs of life, until the entry is live or the build has ended otherwise."""
        while (lease := self._sync.lease) is not None:
            await asyncio.sleep(build.ttl_s / EXTENSIONS_PER_LEASE)
            try:
                await self._client.extend(lease, build)
            except CacheServiceError as error:
                logger.warning("a build goes on without its lease: %s", error)
                return

    def _release(self, build: Build) -> None:
        task = asyncio.create_task(self._released(build))
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def _released(self, build: Build) -> None:
        if lease := self._sync.lease:
            try:
                await self._client.release(lease, build)
            except CacheServiceError as error:
                logger.info("a build that nobody wants any more will lapse by itself: %s", error)

    async def _try_fetch(self, wanted: PendingEntry, holder: ReplicaId) -> bool:
        copy = await self._fetched(CopyRequest(holder, wanted.key, wanted.depths), wanted.token_ids)
        if copy is None or not await asyncio.wrap_future(self._entries.call(lambda entries: entries.install(copy))):
            return False
        self._tally.fetched += 1
        return True

    async def _adopt(self, copy: EntryCopy) -> bool:
        return await asyncio.wrap_future(self._entries.call(lambda entries: entries.adopt(copy)))

    async def _fetched(self, request: CopyRequest, token_ids: tuple[int, ...] | None) -> EntryCopy | None:
        """The holder's copy, checked; None, and the reason counted, where there is none that can be used."""
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
        self._end(tasks, key)
        tasks[key] = asyncio.create_task(coroutine)
        tasks[key].add_done_callback(lambda task: tasks.pop(key) if tasks.get(key) is task else None)

    def _end(self, tasks: dict[PrefixKey, asyncio.Task[None]], key: PrefixKey) -> None:
        if task := tasks.pop(key, None):
            task.cancel()
