"""Maintain a replica's membership in the cluster: one thread talks to the cache service and to other replicas."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial

from cache_service.background import run_forever
from cache_service.client.client import CacheClient
from cache_service.client.contact import WatchContact
from cache_service.client.waits import BuildWaits
from cache_service.core.mirror import Mirror, Moved, News
from cache_service.core.types import Context, DepthTable, PrefixKey, ReplicaId
from workers.api import ContextRead, ContextReply
from workers.bicache.copies import EntryFormat, Transport
from workers.bicache.entry import Changes
from workers.bicache.entry_report import EntryReport
from workers.bicache.entry_table import EngineThread, EntryCommands
from workers.coherence.context_reader import ContextReader
from workers.coherence.estimate import CostModel
from workers.coherence.faults import TaskFaults
from workers.coherence.inventory import Inventory
from workers.coherence.loop_thread import LoopThread
from workers.coherence.supplier import Supplier
from workers.coherence.sync import FAREWELL_TIMEOUT_S, PrefixSync
from workers.coherence.tally import Tally
from workers.coherence.view import ClusterView
from workers.config import CoherenceConfig
from workers.errors import MembershipEndedError, WorkerError


class Membership(LoopThread):
    """Maintains a replica's membership in the cluster while the `with` block runs.

    Neither the engine nor requests ever wait for it: it receives changes through `apply`, and changes entries by
    commands to the engine's thread.

    The watch and the synchronization start again after a failure, with a pause. One entry's supply, one question about
    a context, one report and the pre-warming fail alone: the entry is built here, the request continues with the
    content that it has. All failures are logged and counted. Once the thread itself has ended, the replica is no
    member any more and can't become one again, so `check` raises.
    """

    def __init__(
        self,
        target: str,
        replica: ReplicaId,
        ttl_s: float,
        config: CoherenceConfig,
        *,
        follow_timeout_s: float,
        engine: EngineThread,
        transport: Transport,
        entry_format: EntryFormat,
        costs: CostModel,
        tally: Tally,
    ) -> None:
        """Prepare the membership; a question about a context gets the answer None after `follow_timeout_s`."""
        self._faults = TaskFaults(tally)
        super().__init__("membership", self._faults)
        self._client, self._follow_client = CacheClient(target), CacheClient(target, timeout_s=follow_timeout_s)
        self._config, self._engine, self._tally = config, engine, tally
        self._mirror, self._inventory = Mirror(), Inventory()
        self._view, self._waits = ClusterView(self._mirror), BuildWaits(self._mirror)
        depth_table = DepthTable(config.profile, entry_format.num_layers)
        self._sync = PrefixSync(self._client, replica, ttl_s, self._view, self._inventory, depth_table, tally)
        self._reader = ContextReader(self._follow_client, self._view, self._faults)
        self._supplier = Supplier(
            replica,
            config,
            client=self._client,
            sync=self._sync,
            inventory=self._inventory,
            view=self._view,
            waits=self._waits,
            engine=engine,
            transport=transport,
            entry_format=entry_format,
            costs=costs,
            tally=tally,
            faults=self._faults,
        )

    @property
    def contact(self) -> WatchContact:
        """Return the record of what this member hears from the cache service."""
        return self._client.contact

    def check(self) -> None:
        """Raise MembershipEndedError, with the reason, if this object's thread has ended by itself."""
        if self.end_reason is not None:
            raise MembershipEndedError(self.end_reason)

    def apply(self, changes: Changes) -> None:
        """Process changes to the entries. Called on the engine's thread; returns at once."""
        self._call(partial(self._take, EntryReport.of(changes)))

    def ask(self, read: ContextRead, reply: ContextReply) -> None:
        """Read the newest content of a context, and call `reply` with it on this object's thread. Returns at once.

        If that thread has ended, `reply` is called with None at once.
        """
        if not self._call(partial(self._reader.ask, read, reply)):
            reply(None)

    def drain(self) -> None:
        """Ask the service to route no new work here, and wait for its answer. Other threads may call this."""
        if not self.is_alive:
            return
        draining = asyncio.run_coroutine_threadsafe(self._sync.drain(), self._loop)
        with suppress(TimeoutError):
            draining.result(FAREWELL_TIMEOUT_S)

    # Below: this object's thread only.

    def _take(self, report: EntryReport) -> None:
        """Pass a report on to supplier and sync. If that fails, the awaited entries are built here."""
        try:
            self._supplier.apply(report)
        except Exception as error:
            self._faults.record("supply", error)
            self._supplier.allow_builds(report.awaited)
        self._sync.apply(report)
        over = [live.key for live in report.live if live.content_of and self._view.is_over(live.content_of, live.key)]
        self._act(News(moved=tuple(Moved(key, None) for key in over)))

    async def _watch(self) -> None:
        async for update in self._client.watch(with_content=False):
            news = self._mirror.take(update)
            self._reader.take(update)
            self._waits.take(news)
            self._supplier.take(update)
            self._sync.take(update)
            self._act(news)
            if news.is_restart or any(self._inventory.find_live(key) for key in news.renamed):
                self._sync.wake()

    def _act(self, news: News) -> None:
        """Record other replicas' depth limits, and retire a context's entry of an old epoch.

        A snapshot replaces all limits: none outlives the incarnation of the service that it came from.
        With `eager` refreshes, the entry of the new epoch is built at once.
        """
        with suppress(WorkerError):  # the engine has ended
            if news.is_restart:
                self._engine.call(lambda entries: entries.replace_limits(news.limits))
            elif news.lifted or news.limits:
                self._engine.call(lambda entries: entries.update_limits(news.lifted, news.limits))
        for moved in news.moved:
            if not self._inventory.has(moved.old):
                continue
            if moved.context is not None and self._config.refresh == "eager":
                self._reader.supply(moved.context.id, partial(self._retire, moved.old))
            else:
                self._retire(moved.old, None)

    def _retire(self, key: PrefixKey, successor: Context | None) -> None:
        """Retire the entry of `key`, if it is here still, and have that of its successor built."""

        def command(entries: EntryCommands) -> None:
            self._tally.retired += entries.retire(key, successor=successor)

        if self._inventory.has(key):
            with suppress(WorkerError):  # the engine has ended
                self._engine.call(command)
                self._inventory.replace(key, successor.key if successor else None)

    async def _prewarm(self) -> None:
        await self._sync.joined.wait()
        if self._config.prewarm and self._config.transfer != "never":
            try:
                await self._supplier.prewarm()
            except WorkerError:
                pass  # the engine has ended
            except Exception as error:
                self._faults.record("prewarm", error)

    async def _main(self) -> None:
        async with self._client, self._follow_client:
            lasting = (
                run_forever(self._watch, partial(self._faults.count, "watch")),
                run_forever(self._sync.run, partial(self._faults.count, "sync")),
                self._prewarm(),
            )
            tasks = [asyncio.create_task(task) for task in lasting]
            await self._stop.wait()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._reader.close()
            await self._supplier.close()
            await self._sync.leave()
