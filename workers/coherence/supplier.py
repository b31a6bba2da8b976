"""Supply awaited entries: by a copy from another replica, or by allowing the engine to build them.

Every failure falls back to a build: an entry is never awaited for longer than one wait and the fetches after it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from functools import partial

from cache_service.client.client import CacheClient
from cache_service.client.waits import BuildWaits
from cache_service.core.events import Event
from cache_service.core.types import Build, PrefixKey, ReplicaId, Snapshot
from cache_service.errors import CacheServiceError
from workers.api import CopyRequest
from workers.bicache.copies import CopyRefusedError, EntryCopy, EntryFormat, TransferError, Transport, check_copy
from workers.bicache.entry_report import EntryReport, PendingEntry
from workers.bicache.entry_table import EngineThread, EntryCommands
from workers.coherence.claims import BuildClaims
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
        self._claims = BuildClaims(
            replica, config.build_lease_s, client=client, sync=sync, inventory=inventory, view=view
        )

    def take(self, update: Snapshot | Event) -> None:
        """Take in an update of the watch."""
        self._claims.take(update)

    def apply(self, report: EntryReport) -> None:
        """Start and end the supply of entries after a report. Called before the inventory applies the report."""
        for key in (*report.abandoned, *report.gone):
            self._cancel(key)
            self._claims.give_up(key)
        for pending in report.awaited:
            self._begin(pending)
        for live in report.live:
            self._claims.stop_extending(live.key)
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
        tasks = list(self._sourcing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._claims.close()

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
                    build = await self._claims.claim(pending.key)
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

    def _begin(self, pending: PendingEntry) -> None:
        tasks, key = self._sourcing, pending.key
        self._cancel(key)
        tasks[key] = asyncio.create_task(self._supply(pending))
        tasks[key].add_done_callback(lambda task: tasks.pop(key) if tasks.get(key) is task else None)

    def _cancel(self, key: PrefixKey) -> None:
        if task := self._sourcing.pop(key, None):
            task.cancel()
